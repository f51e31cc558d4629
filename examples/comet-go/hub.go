package main

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync"

	"comet/delivery"
)

const (
	// Messages that wait for one client before it counts as too slow.
	queue = 256
	// Message ids that are remembered for one client: the gateway delivers at least once.
	remembered = 1000
)

// hub holds the connected clients.
type hub struct {
	sync.Mutex
	clients map[string]*client
	rooms   map[string]map[string]*client
}

type client struct {
	id, room string
	conn     net.Conn
	lines    chan []byte
	seen     map[string]bool
	order    []string
}

func newHub() *hub {
	return &hub{clients: map[string]*client{}, rooms: map[string]map[string]*client{}}
}

// accept serves clients: one line "JOIN room connection", then messages.
func (h *hub) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go h.serve(conn)
	}
}

func (h *hub) serve(conn net.Conn) {
	defer conn.Close()
	input := bufio.NewScanner(conn)
	if !input.Scan() {
		return
	}
	words := strings.Fields(input.Text())
	if len(words) != 3 || words[0] != "JOIN" {
		fmt.Fprintln(conn, "expected: JOIN room connection")
		return
	}
	c := &client{id: words[2], room: words[1], conn: conn, lines: make(chan []byte, queue), seen: map[string]bool{}}
	h.join(c)
	defer h.leave(c)
	fmt.Fprintln(conn, "joined")
	go func() {
		for line := range c.lines {
			if _, err := conn.Write(line); err != nil {
				conn.Close()
				return
			}
		}
	}()
	for input.Scan() {
	}
}

func (h *hub) join(c *client) {
	h.Lock()
	defer h.Unlock()
	if h.rooms[c.room] == nil {
		h.rooms[c.room] = map[string]*client{}
	}
	h.clients[c.id], h.rooms[c.room][c.id] = c, c
}

func (h *hub) leave(c *client) {
	h.Lock()
	defer h.Unlock()
	if h.clients[c.id] == c {
		delete(h.clients, c.id)
	}
	if h.rooms[c.room][c.id] == c {
		delete(h.rooms[c.room], c.id)
		if len(h.rooms[c.room]) == 0 {
			delete(h.rooms, c.room)
		}
	}
	close(c.lines)
}

// toRoom reports whether anyone of the room is here.
func (h *hub) toRoom(room string, message *delivery.Message) bool {
	h.Lock()
	defer h.Unlock()
	for _, c := range h.rooms[room] {
		c.take(message)
	}
	return len(h.rooms[room]) > 0
}

// toConnections returns those that are not here.
func (h *hub) toConnections(ids []string, message *delivery.Message) (gone []string) {
	h.Lock()
	defer h.Unlock()
	for _, id := range ids {
		if c := h.clients[id]; c != nil {
			c.take(message)
		} else {
			gone = append(gone, id)
		}
	}
	return gone
}

func (h *hub) toEveryone(message *delivery.Message) {
	h.Lock()
	defer h.Unlock()
	for _, c := range h.clients {
		c.take(message)
	}
}

// take queues a message, once. It never waits: a client that does not keep up is disconnected.
func (c *client) take(message *delivery.Message) {
	if c.seen[message.Id] {
		return
	}
	if message.Id != "" {
		c.seen[message.Id] = true
		c.order = append(c.order, message.Id)
		if len(c.order) > remembered {
			delete(c.seen, c.order[0])
			c.order = c.order[1:]
		}
	}
	select {
	case c.lines <- []byte(fmt.Sprintf("%d %s\n", message.Operation, message.Body)):
	default:
		c.conn.Close()
	}
}
