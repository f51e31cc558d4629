// Peers of the gateway that share no code with it: a comet on grpc-go and a producer on franz-go.
//
//	peers comet PORT            serves both dialects on 127.0.0.1:PORT
//	peers produce [FLAGS]       writes the records of standard input; see -help
//
// Events are reported on standard output, one JSON object per line. The wrappers are in
// tests/support/peers.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "comet":
		err = comet(os.Args[2])
	case len(os.Args) >= 2 && os.Args[1] == "produce":
		err = produce(os.Args[2:])
	default:
		err = fmt.Errorf("usage: peers comet PORT | peers produce [FLAGS]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

var printing sync.Mutex

// tell prints one line as a whole, also to a file that another process reads meanwhile.
func tell(event any) {
	line, err := json.Marshal(event)
	if err != nil {
		panic(err) // Cannot fail: events contain only strings, numbers and bytes.
	}
	printing.Lock()
	defer printing.Unlock()
	os.Stdout.Write(append(line, '\n'))
}
