package sweep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/underlay-cni/underlay/ipam"
	"github.com/underlay-cni/underlay/ipam/ledger"
	"github.com/underlay-cni/underlay/pkg/agent/api"
)

const (
	// apart is the least time between the two looks at which a container is
	// not known.
	apart = 30 * time.Second
	// settled is how old an attachment has to be: runtimes attach a container
	// before they write it down, and may load an image in between.
	settled = 5 * time.Minute
	// few containers may be unknown at once without looking strange.
	few = 8
	// askTime is how long containerd may take to answer.
	askTime = 10 * time.Second
)

// Containers are those that a container runtime knows.
type Containers interface {
	// Runtimes are the names of the programs that attach them, as records have
	// it in Runtime. Nobody else's attachments are in question.
	Runtimes() []string
	// Known lists the IDs by which plugins are told of them.
	Known(ctx context.Context) (map[string]bool, error)
}

// Left is what is there of an attachment whose container nobody knows.
type Left uint8

const (
	// LeftUnseen: its namespace was not found. What is gone is told from what
	// cannot be seen by the look at namespaces.
	LeftUnseen Left = iota
	// LeftProcess: a process is in its namespace. It may be a container of a
	// runtime that was not asked.
	LeftProcess
	// LeftLink: nobody is in its namespace, where its link still answers.
	LeftLink
	// LeftNothing: nobody is in its namespace, and the link is gone.
	LeftNothing
)

// unknown is an attachment whose container was not known at an earlier look.
type unknown struct {
	first time.Time
	made  time.Time // the record, since a container may be attached again
}

// lookUnknown releases attachments of containers that their runtime does not
// know at two looks, unless somebody is in their namespace. A probe would not
// tell whether a link answers: children of a parent do not hear it. So where the
// link is there the addresses go into quarantine.
func (s *Sweep) lookUnknown(ctx context.Context) error {
	// The ledger first: what is added to it later is not in question.
	var recs []ipam.AttachmentRecord
	err := s.conf.Ledger.With(func(l *ledger.Ledger) error {
		return l.Attachments(func(a ipam.AttachmentRecord) error {
			if slices.Contains(s.conf.Containers.Runtimes(), a.Runtime) && time.Since(a.Since) >= settled && a.MissedAt.IsZero() {
				recs = append(recs, a)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	known, err := s.conf.Containers.Known(ctx)
	if err != nil {
		return err
	}
	missing := map[ipam.Attachment]unknown{}
	var due []ipam.AttachmentRecord
	for _, a := range recs {
		if known[a.Attachment.ContainerID] {
			continue
		}
		u, before := s.unknown[a.Attachment]
		if !before || !u.made.Equal(a.Since) {
			u = unknown{time.Now(), a.Since}
		}
		missing[a.Attachment] = u
		if time.Since(u.first) >= apart {
			due = append(due, a)
		}
	}
	if len(missing) > few && len(missing) > len(recs)/2 {
		s.unknown = nil // it begins anew when it can be believed
		return fmt.Errorf("%d containers of %d are not known at once", len(missing), len(recs))
	}
	s.unknown = missing
	if len(due) == 0 {
		return nil
	}
	left, err := s.conf.Left(due)
	if err != nil {
		return err
	}
	var errs []error
	for i, a := range due {
		errs = append(errs, s.releaseUnknown(a, left[i]))
	}
	return errors.Join(errs...)
}

var errOther = errors.New("the record is not the one that was seen")

func (s *Sweep) releaseUnknown(a ipam.AttachmentRecord, left Left) error {
	req := ipam.ReleaseRequest{Attachment: a.Attachment}
	text := "released a leak: its container is not known to the runtime, and its link is gone"
	switch left {
	case LeftUnseen, LeftProcess:
		return nil
	case LeftLink:
		text = "released a leak: its container is not known to the runtime; its link is still there, so that the addresses go into quarantine"
		for _, addr := range a.Addresses {
			req.Conflict = append(req.Conflict, ipam.Conflict{Address: addr, Reason: "the link of a container that has gone still has it"})
		}
	}
	err := s.conf.Ledger.With(func(l *ledger.Ledger) error {
		_, err := l.ReleaseIf(func(now ipam.AttachmentRecord) error {
			if !now.Since.Equal(a.Since) || now.Netns != a.Netns {
				return errOther
			}
			return nil
		}, req)
		return err
	})
	if errors.Is(err, errOther) {
		return nil // it was attached again meanwhile
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", a.Attachment, err)
	}
	delete(s.unknown, a.Attachment)
	s.metrics.released.Inc()
	s.conf.Freed()
	s.conf.Events.Add(api.Event{Kind: api.LeakReleased, Network: a.Attachment.Network, Container: a.Attachment.ContainerID, IfName: a.Attachment.IfName, Text: text})
	return nil
}
