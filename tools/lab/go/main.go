// The guide's client: grpc-go, dns:/// and round_robin. It does what driver.py does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver/dns"
	"google.golang.org/grpc/status"
)

const (
	deadline    = 10 * time.Second // DEADLINE of driver.py
	createEvery = 10              // CREATE_EVERY
)

type client struct {
	Number        int     `json:"number"`
	Target        string  `json:"target"`
	ServiceConfig string  `json:"service_config"`
	Resolution    float64 `json:"resolution"`
}

type plan struct {
	Client client   `json:"client"`
	Rate   float64  `json:"rate"`
	IDs    []string `json:"ids"`
}

// Messages are made by hand, so that no generated code is needed.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (rawCodec) Name() string                       { return "raw" }

func main() {
	input := bufio.NewReader(os.Stdin)
	line, err := input.ReadBytes('\n')
	if err != nil {
		log.Fatal(err)
	}
	var todo plan
	if err := json.Unmarshal(line, &todo); err != nil {
		log.Fatal(err)
	}
	end := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, input)
		close(end)
	}()
	run(todo, end)
}

func open(c client) *grpc.ClientConn {
	dns.SetMinResolutionInterval(time.Duration(c.Resolution * float64(time.Second)))
	connection, err := grpc.NewClient(
		c.Target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(c.ServiceConfig),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:                10 * time.Second,
			Timeout:             3 * time.Second,
			PermitWithoutStream: true,
		}),
	)
	if err != nil {
		log.Fatal(err)
	}
	return connection
}

func run(todo plan, end <-chan struct{}) {
	connection := open(todo.Client)
	tick := time.NewTicker(time.Duration(float64(time.Second) / todo.Rate))
	var calls sync.WaitGroup
	var output sync.Mutex
	for sequence := 1; ; sequence++ {
		select {
		case <-end:
			calls.Wait()
			return
		case <-tick.C:
			calls.Go(func() {
				told := call(connection, todo.Client.Number, sequence, todo.IDs)
				output.Lock()
				defer output.Unlock()
				fmt.Println(told)
			})
		}
	}
}

func call(connection *grpc.ClientConn, number, sequence int, ids []string) string {
	method, request := "GetUser", field(1, ids[sequence%len(ids)])
	if sequence%createEvery == 0 {
		name := fmt.Sprintf("client%d-%d", number, sequence)
		method, request = "CreateUser", append(field(1, name), field(2, name+"@example.com")...)
	}
	trace := fmt.Sprintf("00-%08x%024x-%016x-00", number, sequence, sequence)
	ctx := metadata.AppendToOutgoingContext(context.Background(), "traceparent", trace)
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	var answer []byte
	started := time.Now()
	err := connection.Invoke(ctx, "/user.UserService/"+method, request, &answer, grpc.ForceCodec(rawCodec{}))
	latency := time.Since(started)
	answered := status.Convert(err)
	told, _ := json.Marshal([]any{
		number, sequence, float64(started.UnixMicro()) / 1e6, latency.Seconds(),
		codeName(answered), answered.Message(),
	})
	return string(told)
}

// Return the bytes of a text as a field of a message; it is shorter than 128 bytes.
func field(number int, text string) []byte {
	return append([]byte{byte(number<<3 | 2), byte(len(text))}, text...)
}

// Return a code as Python writes it, such as UNAVAILABLE.
func codeName(answered *status.Status) string {
	names := [...]string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
		"UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
	}
	return names[answered.Code()]
}
