package main

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// call is one call as it arrived. The request stays in its bytes: the wrapper decodes it.
type call struct {
	Method  string   `json:"method"`
	Ids     []string `json:"ids"`
	Request []byte   `json:"request"`
}

// behaviour is what the comet does with calls, after telling of them.
type behaviour struct {
	DelayMs int    `json:"delay_ms"`
	Status  uint32 `json:"status"`
	Message string `json:"message"`
}

// raw takes and gives messages as they are.
type raw struct{}

func (raw) Name() string                    { return "raw" }
func (raw) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = append([]byte{}, b...); return nil }

// connections counts how many connections were opened and closed.
type connections struct{}

func (connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (connections) HandleRPC(context.Context, stats.RPCStats)                         {}
func (connections) HandleConn(_ context.Context, event stats.ConnStats) {
	switch event.(type) {
	case *stats.ConnBegin:
		tell(map[string]string{"connection": "opened"})
	case *stats.ConnEnd:
		tell(map[string]string{"connection": "closed"})
	}
}

type server struct {
	sync.Mutex
	now behaviour
}

// comet serves with grpc-go's defaults: a client that pings an idle connection more often than
// every five minutes is sent "too many pings" and disconnected.
func comet(port string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	s := &server{}
	grpcServer := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.StatsHandler(connections{}))
	for _, dialect := range []string{"ChatRoom.Comet.Comet", "goim.comet.Comet"} {
		description := &grpc.ServiceDesc{ServiceName: dialect, HandlerType: (*any)(nil)}
		for _, name := range []string{"PushMsg", "Broadcast", "BroadcastRoom", "Rooms"} {
			path := "/" + dialect + "/" + name
			description.Methods = append(description.Methods, grpc.MethodDesc{MethodName: name, Handler: s.handler(path)})
		}
		grpcServer.RegisterService(description, s)
	}
	grpcServer.RegisterService(&grpc.ServiceDesc{
		ServiceName: "halley.Peer", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Behave", Handler: s.behave}},
	}, s)
	tell(map[string]string{"listening": listener.Addr().String()})
	return grpcServer.Serve(listener)
}

type unary = func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error)

func (s *server) handler(path string) unary {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var request []byte
		if err := decode(&request); err != nil {
			return nil, err
		}
		md, _ := metadata.FromIncomingContext(ctx)
		tell(call{Method: path, Ids: ids(md), Request: request})
		s.Lock()
		now := s.now
		s.Unlock()
		select {
		case <-time.After(time.Duration(now.DelayMs) * time.Millisecond):
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		if now.Status != 0 {
			return nil, status.Error(codes.Code(now.Status), now.Message)
		}
		return &[]byte{}, nil
	}
}

// ids are the ids of the messages of a call: entries of `halley-message-id` are lists.
func ids(md metadata.MD) []string {
	var ids []string
	for _, list := range md.Get("halley-message-id") {
		ids = append(ids, strings.Split(list, ",")...)
	}
	return ids
}

func (s *server) behave(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var request []byte
	if err := decode(&request); err != nil {
		return nil, err
	}
	var wanted behaviour
	if err := json.Unmarshal(request, &wanted); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.Lock()
	defer s.Unlock()
	s.now = wanted
	return &[]byte{}, nil
}
