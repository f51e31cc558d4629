// A small comet in Go that takes messages from Halley by stream (proto/delivery.proto).
//
//	go run . -listen 127.0.0.1:50052 -clients 127.0.0.1:7001
//	nc 127.0.0.1 7001           # then type: JOIN video_123 conn_1
//
// A client joins a room under a connection id, and gets a line for each message: its operation, a space,
// its body. Only streams are served; a comet that must also work with gateways that make calls serves the
// methods of its dialect next to them. It writes no directory: see examples/comet.rs for that.
//
// The files in delivery/ are generated from ../../proto, with protoc-gen-go and protoc-gen-go-grpc:
//
//	protoc -I ../../proto --go_out=delivery --go_opt=paths=source_relative \
//	  --go_opt=Mdelivery.proto=comet/delivery --go-grpc_out=delivery \
//	  --go-grpc_opt=paths=source_relative --go-grpc_opt=Mdelivery.proto=comet/delivery delivery.proto
package main

import (
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"comet/delivery"

	"google.golang.org/grpc"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:50052", "where gateways connect")
	clients := flag.String("clients", "127.0.0.1:7001", "where clients connect")
	flag.Parse()
	log.SetFlags(0)

	hub := newHub()
	lines, err := net.Listen("tcp", *clients)
	if err != nil {
		log.Fatal(err)
	}
	go hub.accept(lines)

	calls, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	comet := &comet{hub: hub, goingAway: make(chan struct{})}
	server := grpc.NewServer()
	delivery.RegisterDeliveryServer(server, comet)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		// GoAway first: the gateway sends nothing new and ends its streams, for which GracefulStop waits.
		close(comet.goingAway)
		time.AfterFunc(5*time.Second, server.Stop)
		server.GracefulStop()
	}()
	log.Printf("gateways on %s, clients on %s", calls.Addr(), lines.Addr())
	if err := server.Serve(calls); err != nil {
		log.Fatal(err)
	}
}
