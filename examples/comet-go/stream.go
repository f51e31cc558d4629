package main

import (
	"io"
	"log"
	"sync"

	"comet/delivery"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// What may be out: more than the gateway sends in the time that an acknowledgement takes.
	window      = 10_000
	windowBytes = 16 << 20
	// The gateway asks for a sign of life after this long without traffic.
	heartbeatMs = 10_000
)

type comet struct {
	delivery.UnimplementedDeliveryServer
	hub *hub
	// Closed when the comet is going to end.
	goingAway chan struct{}
}

// stream is one stream of one gateway. Its frames are handled one after the other, in their order.
type stream struct {
	delivery.Delivery_DeliverServer
	// gRPC allows one Send at a time.
	sending sync.Mutex
	// Totals since it began.
	messages, bytes uint64
}

// Deliver serves one stream until the gateway ends it.
func (c *comet) Deliver(server delivery.Delivery_DeliverServer) error {
	s := &stream{Delivery_DeliverServer: server}
	first, err := s.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil || hello.Version < 1 {
		return status.Error(codes.InvalidArgument, "the first frame is not Hello")
	}
	log.Printf("%s streams messages", hello.Gateway)
	welcome := &delivery.Welcome{Version: 1, Comet: "comet-go", Credit: s.credit(), HeartbeatMs: heartbeatMs}
	if err := s.send(&delivery.FromComet{Frame: &delivery.FromComet_Welcome{Welcome: welcome}}); err != nil {
		return err
	}
	go func() {
		select {
		case <-c.goingAway:
			// An error means that the stream has ended.
			_ = s.send(&delivery.FromComet{Frame: &delivery.FromComet_GoAway{GoAway: &delivery.GoAway{Reason: "it stops"}}})
		case <-s.Context().Done():
		}
	}()
	for {
		frame, err := s.Recv()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		switch frame := frame.Frame.(type) {
		case *delivery.ToComet_Messages:
			err = c.take(s, frame.Messages.Messages)
		case *delivery.ToComet_Ping:
			pong := &delivery.Pong{Nonce: frame.Ping.Nonce}
			err = s.send(&delivery.FromComet{Frame: &delivery.FromComet_Pong{Pong: pong}})
		}
		// Finish needs no answer: what came before it is acknowledged. Frames of later versions are ignored.
		if err != nil {
			return err
		}
	}
}

// take hands over the messages of a frame, and acknowledges all of them with one frame.
func (c *comet) take(s *stream, messages []*delivery.Message) error {
	acks := &delivery.Acks{}
	for _, message := range messages {
		acks.UpTo = message.Seq
		s.messages++
		s.bytes += uint64(len(message.Body))
		switch audience := message.Audience.(type) {
		case *delivery.Message_Room:
			if !c.hub.toRoom(audience.Room, message) {
				// Nobody of the room is here: its members go to the offline policy.
				acks.Missing = append(acks.Missing, &delivery.Missing{Seq: message.Seq})
			}
		case *delivery.Message_Connections:
			if gone := c.hub.toConnections(audience.Connections.Ids, message); len(gone) > 0 {
				acks.Missing = append(acks.Missing, &delivery.Missing{Seq: message.Seq, Ids: gone})
			}
		case *delivery.Message_Everyone:
			c.hub.toEveryone(message)
		default:
			acks.Refused = append(acks.Refused, &delivery.Refused{Seq: message.Seq, Reason: "an unknown audience"})
		}
	}
	if err := s.send(&delivery.FromComet{Frame: &delivery.FromComet_Acks{Acks: acks}}); err != nil {
		return err
	}
	return s.send(&delivery.FromComet{Frame: &delivery.FromComet_Credit{Credit: s.credit()}})
}

// credit is a total since the stream began: it grows with what was acknowledged.
func (s *stream) credit() *delivery.Credit {
	return &delivery.Credit{Messages: s.messages + window, Bytes: s.bytes + windowBytes}
}

func (s *stream) send(frame *delivery.FromComet) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.Send(frame)
}
