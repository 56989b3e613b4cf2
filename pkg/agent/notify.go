package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// notify tells systemd what the service is up to (sd_notify(3)): one datagram
// to the socket that it names. Without one it does nothing.
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	// A name that begins with @ is in the abstract namespace; package net reads
	// it the same way.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	_, err = c.Write([]byte(state))
	return errors.Join(err, c.Close())
}
