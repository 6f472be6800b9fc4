// Makes the calls of load.py with grpc-go, and tells of each in a line of JSON, until its standard input ends.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver/dns"
	"google.golang.org/grpc/status"
)

const (
	page        = 1000             // PAGE of load.py
	parts       = 25               // PARTS
	slowReaders = 3                // SLOW_READERS
	large       = 15 << 10         // LARGE
	deadline    = 60 * time.Second // DEADLINE
	service     = "/user.UserService/"
)

// Messages are made by hand, so that no generated code is needed.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (rawCodec) Name() string                       { return "raw" }

var (
	connection *grpc.ClientConn
	numbers    atomic.Int64
	output     sync.Mutex
	slow       = flag.Duration("slow", 3*time.Second, "that slow readers take for a page")
)

func main() {
	target := flag.String("target", "", "to dial")
	authority := flag.String("authority", "", "what the servers' certificates are for")
	certificates := flag.String("certificates", "", "directory with tls.crt, tls.key and ca.crt")
	resolution := flag.Duration("resolution", 30*time.Second, "least time between two questions to the DNS")
	flag.Parse()
	dns.SetMinResolutionInterval(*resolution)
	mutualTLS, err := followed(*certificates)
	if err != nil {
		log.Fatal(err)
	}
	connection, err = grpc.NewClient(*target,
		grpc.WithTransportCredentials(mutualTLS),
		// Of the target, advancedtls would look for the port too in the servers' certificates.
		grpc.WithAuthority(*authority),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})),
		// Or the window grows, and a whole page is in it before the slow reader wants it.
		grpc.WithInitialWindowSize(64<<10),
		// No policy says so, but an environment might.
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		log.Fatal(err)
	}
	end := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(end)
	}()
	var callers sync.WaitGroup
	repeat := func(pause time.Duration, work func()) {
		callers.Go(func() {
			for {
				select {
				case <-end:
					return
				case <-time.After(pause):
					work()
				}
			}
		})
	}
	create(0) // or the first page would be the last
	repeat(50*time.Millisecond, func() { create(0) })
	repeat(100*time.Millisecond, func() { create(large) })
	repeat(500*time.Millisecond, func() { list(0) })
	for range slowReaders {
		repeat(0, func() { list(*slow) })
	}
	callers.Wait()
}

func tell(words ...string) {
	line, _ := json.Marshal(words)
	output.Lock()
	defer output.Unlock()
	fmt.Println(string(line))
}

func failed(kind string, err error) {
	tell("failed", kind, strings.ToUpper(status.Code(err).String())+": "+status.Convert(err).Message())
	time.Sleep(100 * time.Millisecond)
}

// Create a user without a key, then get it, and create it again, which is refused.
func create(size int) {
	name := fmt.Sprintf("go-%d", numbers.Add(1))
	email := name + "@example.com"
	request := append(field(1, name), field(2, email)...)
	if size > 0 { // field 100, which no message has
		request = append(request, 0xa2, 0x06, byte(size&0x7f|0x80), byte(size>>7))
		request = append(request, make([]byte, size)...)
	}
	tell("begun", email)
	user, err := invoke("CreateUser", request)
	if err != nil {
		failed("create", err)
		return
	}
	id := string(user[2 : 2+user[1]])
	tell("created", email, id)
	if again, err := invoke("GetUser", field(1, id)); err != nil {
		failed("get", err)
	} else if string(again) != string(user) {
		tell("failed", "get", "a wrong answer")
	} else {
		tell("answered", "get")
	}
	if _, err := invoke("CreateUser", request); status.Code(err) != codes.AlreadyExists {
		failed("create that is refused", err)
	} else {
		tell("answered", "create that is refused")
	}
}

func invoke(method string, request []byte) (answer []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	err = connection.Invoke(ctx, service+method, request, &answer)
	return answer, err
}

// List a page of users, and take so long for it.
func list(rest time.Duration) {
	kind := "page"
	if rest > 0 {
		kind = "slow page"
	}
	count, trailer, err := read(rest / parts)
	switch {
	case err != nil:
		failed(kind, err)
	case count != page || len(trailer.Get("next-page-token")) == 0:
		tell("failed", kind, fmt.Sprintf("a wrong answer; %d users", count))
	default:
		tell("answered", kind)
	}
}

func read(rest time.Duration) (int, metadata.MD, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, service+"ListUsers")
	if err != nil {
		return 0, nil, err
	}
	if err := stream.SendMsg([]byte{1 << 3, 0xe8, 0x07}); err != nil { // page_size 1000
		return 0, nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return 0, nil, err
	}
	for count := 0; ; count++ {
		var user []byte
		if err := stream.RecvMsg(&user); err == io.EOF {
			return count, stream.Trailer(), nil
		} else if err != nil {
			return count, nil, err
		}
		if count%(page/parts) == 0 {
			time.Sleep(rest)
		}
	}
}

// Return the bytes of a text as a field of a message; it is shorter than 128 bytes.
func field(number int, text string) []byte {
	return append([]byte{byte(number<<3 | 2), byte(len(text))}, text...)
}
