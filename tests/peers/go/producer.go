package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// record is one line of standard input. Bytes are in base64; what is absent is null.
type record struct {
	Partition   int32      `json:"partition"`
	Key         []byte     `json:"key"`
	Value       []byte     `json:"value"`
	Zeros       int        `json:"zeros"` // zero bytes to append to the value
	Headers     [][][]byte `json:"headers"`
	TimestampMs *int64     `json:"timestamp_ms"`
	Repeat      int        `json:"repeat"` // how often to repeat the record
}

var codecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

// produce writes all records of standard input at once: those of a partition share batches as large
// as -batch-bytes allows before compression.
func produce(args []string) error {
	flags := flag.NewFlagSet("produce", flag.ExitOnError)
	brokers := flags.String("brokers", "", "host:port")
	topic := flags.String("topic", "", "the topic")
	compression := flags.String("compression", "none", "none, gzip, snappy, lz4 or zstd")
	batch := flags.Int("batch-bytes", 1<<20, "the most that a batch holds before compression")
	transaction := flags.String("transaction", "", "a transactional id: all records in one transaction")
	abort := flags.Bool("abort", false, "aborts the transaction instead of committing it")
	flags.Parse(args)
	codec, known := codecs[*compression]
	if !known {
		return fmt.Errorf("no compression %q", *compression)
	}
	records, err := read(os.Stdin, *topic)
	if err != nil {
		return err
	}
	options := []kgo.Opt{
		kgo.SeedBrokers(*brokers), kgo.ProducerBatchCompression(codec), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(int32(*batch)), kgo.BrokerMaxWriteBytes(int32(max(*batch*2, 100<<20))),
		kgo.ManualFlushing(), kgo.MaxBufferedRecords(max(len(records), 1)),
	}
	if *transaction != "" {
		options = append(options, kgo.TransactionalID(*transaction))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	client, err := connect(ctx, options)
	if err != nil {
		return err
	}
	defer client.Close()
	if *transaction != "" {
		if err := client.BeginTransaction(); err != nil {
			return err
		}
	}
	var failed error
	for _, r := range records {
		client.Produce(ctx, r, func(r *kgo.Record, err error) {
			if err != nil {
				failed = err
				return
			}
			tell(map[string]int64{"partition": int64(r.Partition), "offset": r.Offset})
		})
	}
	if err := client.Flush(ctx); err != nil {
		return err
	}
	if *transaction != "" && failed == nil {
		failed = client.EndTransaction(ctx, kgo.TransactionEndTry(!*abort))
	}
	return failed
}

// connect makes a client with a producer id. A coordinator that has just begun, or has another
// transaction of the same id to end, refuses one for a while, after which the client is of no use.
func connect(ctx context.Context, options []kgo.Opt) (*kgo.Client, error) {
	for {
		client, err := kgo.NewClient(options...)
		if err != nil {
			return nil, err
		}
		if _, _, err = client.ProducerID(ctx); err == nil {
			return client, nil
		}
		client.Close()
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func read(input io.Reader, topic string) ([]*kgo.Record, error) {
	var all []*kgo.Record
	for decoder := json.NewDecoder(input); ; {
		var r record
		if err := decoder.Decode(&r); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		for n := 0; n <= r.Repeat; n++ {
			all = append(all, r.toKafka(topic))
		}
	}
}

func (r *record) toKafka(topic string) *kgo.Record {
	made := &kgo.Record{Topic: topic, Partition: r.Partition, Key: r.Key, Value: r.Value}
	if r.Zeros > 0 {
		made.Value = append(append([]byte{}, r.Value...), make([]byte, r.Zeros)...)
	}
	for _, header := range r.Headers {
		made.Headers = append(made.Headers, kgo.RecordHeader{Key: string(header[0]), Value: header[1]})
	}
	if r.TimestampMs != nil {
		made.Timestamp = time.UnixMilli(*r.TimestampMs)
	}
	return made
}

func max(a, b int) int {
	if a > b {
		return a
	}
	return b
}
