package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// warmUp is the number of rounds that are run and not counted.
const warmUp = 3

// bench is one run.
type bench struct {
	options
	scratch string
	stage   *stage
	report  *Report
}

// section is one of the things to measure.
type section struct {
	name  string
	guest bool // it needs a guest's kernel
	run   func(*bench, context.Context) error
}

// wanted are the sections to run in a guest, or those to run elsewhere.
func (o options) wanted(guest bool) (wanted []section) {
	for _, s := range []section{
		{"one", false, (*bench).one},
		{"many", false, (*bench).many},
		{"ipv6", false, (*bench).ipv6},
		{"held", false, (*bench).held},
		{"agent", false, (*bench).agent},
		{"peers", false, (*bench).peers},
		{"path", false, (*bench).path},
		{"scale", false, (*bench).scaled},
		{"crowd", false, (*bench).crowd},
		{"ipvlan", true, (*bench).ipvlan},
	} {
		if s.guest == guest && o.only.MatchString(s.name) && (s.name != "scale" && s.name != "crowd" || o.scale) {
			wanted = append(wanted, s)
		}
	}
	return wanted
}

// inside runs the sections that are for where it is.
func inside(ctx context.Context, o options, scratch string) (*Report, error) {
	guest := os.Getenv(guestEnv) != ""
	stage, err := newStage(scratch, guest)
	if err != nil {
		return nil, err
	}
	report, err := newReport(o.workers)
	if err != nil {
		return nil, err
	}
	b := &bench{options: o, scratch: scratch, stage: stage, report: report}
	for _, section := range o.wanted(guest) {
		start := time.Now()
		fmt.Fprintf(os.Stderr, "%s ... ", section.name)
		if err := section.run(b, ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", section.name, err)
		}
		if err := stage.clear(); err != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "%.0f s\n", time.Since(start).Seconds())
	}
	report.finish()
	return report, nil
}

// macvlan is a macvlan variant without IPAM, or with one on pool p.
func (b *bench) macvlan(section, name, binaries, ipam string, p pool) (variant, error) {
	return b.network(object{"type": "macvlan", "mode": "bridge"}, section, name, binaries, ipam, p)
}

func (b *bench) network(conf object, section, name, binaries, ipam string, p pool) (variant, error) {
	dir := filepath.Join(b.scratch, section, name)
	conf["master"] = parent
	if binaries == b.bin {
		conf["dataDir"], conf["runDir"] = filepath.Join(dir, "data"), filepath.Join("/run", section, name)
	}
	if ipam != "" {
		conf["ipam"] = p.ipam(ipam)
	}
	if ipam == "host-local" {
		conf["ipam"].(object)["dataDir"] = filepath.Join(dir, "data")
	}
	if binaries == floorDir(b.scratch) {
		conf["type"] = "floor"
	}
	return newVariant(name, binaries, dir, conf)
}

// macvlans are the five variants of the budgets.
func (b *bench) macvlans(section string) ([]variant, error) {
	reference := referenceDir(b.scratch)
	var variants []variant
	for _, v := range []struct{ name, binaries, ipam string }{
		{floor, floorDir(b.scratch), ""},
		{refNoIPAM, reference, ""},
		{refHostLocal, reference, "host-local"},
		{oursNoIPAM, b.bin, ""},
		{oursIPAM, b.bin, "underlay"},
	} {
		made, err := b.macvlan(section, v.name, v.binaries, v.ipam, ipv4)
		if err != nil {
			return nil, err
		}
		variants = append(variants, made)
	}
	return variants, nil
}

// one measures ADD and DEL, one at a time.
func (b *bench) one(ctx context.Context) error {
	variants, err := b.macvlans("one")
	if err != nil {
		return err
	}
	return b.alternate(ctx, sectionOne, b.rounds, variants)
}

// ipv6 compares an ADD with an IPv6 address and gateway with one with IPv4.
func (b *bench) ipv6(ctx context.Context) error {
	var variants []variant
	for _, v := range []struct {
		name, binaries, ipam string
		pool                 pool
	}{
		{oursIPAM + ", IPv4", b.bin, "underlay", ipv4},
		{oursIPAM + ", IPv6", b.bin, "underlay", ipv6},
		{refHostLocal + ", IPv4", referenceDir(b.scratch), "host-local", ipv4},
		{refHostLocal + ", IPv6", referenceDir(b.scratch), "host-local", ipv6},
	} {
		made, err := b.macvlan("ipv6", v.name, v.binaries, v.ipam, v.pool)
		if err != nil {
			return err
		}
		variants = append(variants, made)
	}
	variants[3].every = 4 // it waits for duplicate address detection, nearly 2 s
	return b.alternate(ctx, sectionIPv6, max(1, b.rounds/6), variants)
}

// ipvlan compares mode l2 with the reference, as far as that goes. All links are
// on one parent, so they have to have different addresses.
func (b *bench) ipvlan(ctx context.Context) error {
	var variants []variant
	for _, v := range []struct {
		name, binaries, ipam string
		pool                 pool
	}{
		{refHostLocal, referenceDir(b.scratch), "host-local", pool{"10.11.0.0/16", "10.11.0.1", ipv4.everywhere}},
		{oursIPAM, b.bin, "underlay", ipv4},
	} {
		made, err := b.network(object{"type": "ipvlan", "mode": "l2"}, "ipvlan", v.name, v.binaries, v.ipam, v.pool)
		if err != nil {
			return err
		}
		// The first on a parent looks whether others have set it otherwise; those
		// measured are not.
		first, err := b.stage.attachment(made)
		if err != nil {
			return err
		}
		if _, err := first.add(ctx); err != nil {
			return err
		}
		variants = append(variants, made)
	}
	return b.alternate(ctx, sectionIpvlan, max(1, b.rounds/6), variants)
}

func (b *bench) declare(section string, variants []variant) {
	var names []string
	for _, v := range variants {
		names = append(names, v.name)
	}
	b.report.declare(section, names...)
}

// alternate runs ADD and DEL of all variants, in a new order every round.
func (b *bench) alternate(ctx context.Context, section string, rounds int, variants []variant) error {
	b.declare(section, variants)
	for round := -warmUp; round < rounds; round++ {
		for _, i := range rand.Perm(len(variants)) {
			v := variants[i]
			if v.every > 1 && round%v.every != 0 {
				continue
			}
			a, err := b.stage.attachment(v)
			if err != nil {
				return err
			}
			added, err := a.add(ctx)
			if err != nil {
				return err
			}
			deleted, err := a.del(ctx)
			if err != nil {
				return err
			}
			if round >= 0 {
				b.report.record(section, v.name, "ADD", added)
				b.report.record(section, v.name, "DEL", deleted)
			}
		}
	}
	return nil
}

// many measures attachments by several workers at once.
func (b *bench) many(ctx context.Context) error {
	const rounds = 3
	variants, err := b.macvlans("many")
	if err != nil {
		return err
	}
	b.declare(sectionMany, variants)
	size := max(b.workers, b.rounds/rounds)
	for range rounds {
		for _, i := range rand.Perm(len(variants)) {
			batch := make([]attachment, size)
			for j := range batch {
				if batch[j], err = b.stage.attachment(variants[i]); err != nil {
					return err
				}
			}
			if err := b.together(ctx, sectionMany, batch); err != nil {
				return err
			}
		}
	}
	return nil
}

// scaled attaches 128 pods to 16 networks each.
func (b *bench) scaled(ctx context.Context) error {
	const pods, networks = 128, 16
	b.report.declare(sectionScale, oursNoIPAM, oursIPAM)
	for _, v := range []struct{ name, ipam string }{{oursNoIPAM, ""}, {oursIPAM, "underlay"}} {
		var variants []variant
		for n := range networks {
			made, err := b.macvlan("scale", v.name, b.bin, v.ipam, pool{
				fmt.Sprintf("10.%d.0.0/24", 100+n), fmt.Sprintf("10.%d.0.1", 100+n), ipv4.everywhere,
			})
			if err != nil {
				return err
			}
			made.list.Name = fmt.Sprintf("lan%d", n)
			variants = append(variants, made)
		}
		var batch []attachment
		for range pods {
			pod, err := b.stage.attachment(variants[0])
			if err != nil {
				return err
			}
			for n, v := range variants {
				rt := *pod.rt
				rt.IfName = fmt.Sprintf("net%d", n)
				batch = append(batch, attachment{v, &rt})
			}
		}
		if err := b.together(ctx, sectionScale, batch); err != nil {
			return err
		}
	}
	return nil
}

// together makes and removes a batch of attachments with all workers at once.
func (b *bench) together(ctx context.Context, section string, batch []attachment) error {
	for _, step := range []struct {
		verb string
		do   func(attachment, context.Context) (time.Duration, error)
	}{{"ADD", attachment.add}, {"DEL", attachment.del}} {
		took := make([]time.Duration, len(batch))
		errs := make([]error, len(batch))
		next := make(chan int)
		var workers sync.WaitGroup
		start := time.Now()
		for range b.workers {
			workers.Go(func() {
				for i := range next {
					took[i], errs[i] = step.do(batch[i], ctx)
				}
			})
		}
		for i := range batch {
			next <- i
		}
		close(next)
		workers.Wait()
		whole := time.Since(start)
		if err := errors.Join(errs...); err != nil {
			return err
		}
		b.report.record(section, batch[0].name, step.verb, took...)
		b.report.recordWhole(section, batch[0].name, step.verb, whole)
	}
	return b.stage.clear()
}
