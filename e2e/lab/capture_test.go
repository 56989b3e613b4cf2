package lab

import (
	"context"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

func TestCapture(t *testing.T) {
	t.Parallel()
	l := Test(t)
	h1 := host(t, l, "h1", "192.0.2.1/24", "2001:db8::1/64")
	h2 := host(t, l, "h2", "192.0.2.2/24", "2001:db8::2/64")
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()

	sent, err := h1.Capture(ctx, Parent)
	if err != nil {
		t.Fatal(err)
	}
	// What h2 receives is what its port sends.
	port, err := l.Switch.Capture(ctx, h2.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"192.0.2.2", "2001:db8::2"} {
		if ok, err := h1.Ping(ctx, netip.MustParseAddr(addr), soon); !ok {
			t.Fatalf("ping %s: no answer, error %v", addr, err)
		}
	}
	for _, want := range []string{
		"arp who-has 192.0.2.2 tell 192.0.2.1",
		"192.0.2.1 > 192.0.2.2: icmp echo",
		"icmp6 who-has 2001:db8::2",
		"2001:db8::1 > 2001:db8::2: icmp6 echo",
	} {
		for _, c := range []*Capture{sent, port} {
			f, err := c.Wait(ctx, func(f Frame) bool { return strings.HasSuffix(f.String(), want) })
			if err != nil {
				t.Errorf("%q: %v", want, err)
			} else if !f.Outgoing {
				t.Errorf("%q: not outgoing", want)
			}
		}
	}
	frames := len(sent.Close())
	if _, err := h1.Ping(ctx, netip.MustParseAddr("192.0.2.2"), soon); err != nil {
		t.Fatal(err)
	}
	if after := len(sent.Close()); after != frames {
		t.Errorf("%d frames after Close, %d at Close", after, frames)
	}
	if _, err := sent.Wait(ctx, func(Frame) bool { return false }); err == nil {
		t.Error("Wait after Close: no error")
	}
	if _, err := h1.Capture(ctx, "nic0"); err == nil {
		t.Error("capture on a missing interface: no error")
	}
}

func TestFrameString(t *testing.T) {
	t.Parallel()
	const (
		ether  = "020000000001 020000000002 "
		packet = "60000000 0000 3a ff 20010db8000000000000000000000001 20010db8000000000000000000000002 "
	)
	tests := []struct{ name, raw, want string }{
		{
			"arp request", ether + "0806 0001 0800 06 04 0001 020000000002 c0000201 000000000000 c0000202",
			"arp who-has 192.0.2.2 tell 192.0.2.1",
		},
		{
			"arp reply", ether + "0806 0001 0800 06 04 0002 020000000002 c0000201 020000000001 c0000202",
			"arp reply 192.0.2.1 is-at 02:00:00:00:00:02",
		},
		{"short arp", ether + "0806 0001", "type 0x0806, 2 bytes"},
		{
			"echo behind options", ether + "0800 46000000 00000000 40010000 c0000201 c0000202 01010101 0800",
			"192.0.2.1 > 192.0.2.2: icmp echo",
		},
		{
			"udp", ether + "0800 45000000 00000000 40110000 c0000201 c0000202 0800",
			"192.0.2.1 > 192.0.2.2: protocol 17",
		},
		{
			"header length beyond the end", ether + "0800 4f000000 00000000 40010000 c0000201 c0000202 08",
			"192.0.2.1 > 192.0.2.2: protocol 1",
		},
		{"echo reply 6", ether + "86dd" + packet + "81", "2001:db8::1 > 2001:db8::2: icmp6 reply"},
		{
			"advertisement", ether + "86dd" + packet + "88 00 0000 20000000 20010db8000000000000000000000001",
			"2001:db8::1 > 2001:db8::2: icmp6 adv 2001:db8::1",
		},
		{"short solicitation", ether + "86dd" + packet + "87 00", "2001:db8::1 > 2001:db8::2: icmp6 type 135"},
		{"nothing", ether + "88cc", "type 0x88cc, 0 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw, err := hex.DecodeString(strings.ReplaceAll(tt.raw, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			want := "02:00:00:00:00:02 > 02:00:00:00:00:01: " + tt.want
			if got := (Frame{Raw: raw}).String(); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}
