package history_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/underlay-cni/underlay/e2e/cluster"
)

const (
	workers = 16 // of each host
	// keepers of them have an owner in the strict pool, and movers one in the
	// soft pool. Both go from host to host. The others have none.
	keepers = 3
	movers  = 4

	// enough is more than a plugin takes, on a busy machine and with an agent
	// that stands still.
	enough = 2 * time.Minute
)

// points are where a plugin may die that has the ledger itself, or spools.
var points = []string{
	"ledger.commit.begin", "ledger.commit.durable", "ledger.commit.marked", "ledger.spool.written", "ledger.spool.named",
	"ledger.drain.applied", "#1", "#2", "#3", "#4", "#5", "#6",
}

// worker is a part of the load: it begins and ends the lives of attachments,
// one after the other.
type worker struct {
	*storm
	name   string
	home   int            // host
	netns  map[int]string // path, by host
	pool   string
	owner  string
	choose *rand.Rand
	lives  int
	kept   *attachment // of an earlier life
}

// attachment is as its runtime knows it.
type attachment struct {
	*worker
	node      *cluster.Node
	netns, id string
	addr      netip.Addr // the zero Addr unless the last ADD was ok, and no DEL came
	// gone: a DEL was ok, and no ADD came.
	gone bool
}

func (w *worker) run() {
	for !w.over() {
		w.idle()
		w.live()
		w.sleep(200 * time.Millisecond)
	}
	if w.kept != nil {
		w.kept.end()
	}
}

// sleep is for so long at most.
func (w *worker) sleep(most time.Duration) { time.Sleep(time.Duration(w.choose.Int64N(int64(most)))) }

// live is the life of one attachment, which may be kept beside the next one.
func (w *worker) live() {
	host := w.home
	if w.owner != "" {
		host = w.choose.IntN(hosts)
	}
	a := &attachment{worker: w, node: w.bed.Nodes[host], netns: w.netns[host], id: w.name}
	if w.choose.IntN(2) == 0 || w.kept != nil {
		w.lives++ // else it is a container that is started again
		a.id = fmt.Sprintf("%s-%d", w.name, w.lives)
	}
	for range 1 + w.choose.IntN(3) {
		a.add()
		w.sleep(300 * time.Millisecond)
	}
	if w.kept != nil {
		w.kept.end()
		w.kept = nil
	}
	if w.owner == "" && w.choose.IntN(4) == 0 && a.addr.IsValid() {
		w.kept = a
		return
	}
	a.end()
}

// end is as many DELs as it takes to have one answered.
func (a *attachment) end() {
	for tries := 0; a.del() != ok; tries++ {
		if tries == 100 {
			a.t.Errorf("%s: no DEL of 100 is ok", a.id)
			return
		}
	}
}

func (a *attachment) add() outcome {
	c := a.call("ADD")
	a.gone = false
	if c.outcome != ok {
		return c.outcome
	}
	if a.addr.IsValid() && a.addr != c.addr {
		a.t.Errorf("a repeated ADD gives another address, not %s: %s", a.addr, c)
	}
	a.addr = c.addr
	return ok
}

func (a *attachment) del() outcome {
	a.addr = netip.Addr{}
	o := a.call("DEL").outcome
	a.gone = a.gone || o == ok
	return o
}

// call runs the plugin, which may be killed, and writes down what it says.
func (a *attachment) call(verb string) call {
	ctx, cancel := context.WithTimeout(context.Background(), enough)
	defer cancel()
	env := slices.Clone(a.node.Env)
	killed := false
	switch {
	case a.calm.Load():
	case a.choose.IntN(8) == 0:
		killed = true
		most := 30 * time.Millisecond
		if a.choose.IntN(3) == 0 {
			most = 3 * time.Second // while it waits for others
		}
		ctx, cancel = context.WithTimeout(ctx, time.Duration(a.choose.Int64N(int64(most))))
		defer cancel()
	case a.choose.IntN(6) == 0:
		killed = true
		env = append(env, "UNDERLAY_FAULT="+points[a.choose.IntN(len(points))])
	}
	c := call{verb: verb, attachment: a.node.Name + "/" + a.id, owner: a.owner, host: a.node.Name, begin: a.history.now()}
	out, err := a.plugin(ctx, verb, env)
	c.end = a.history.now()
	c.outcome, c.addr, c.note = judgeCall(verb, out, err)
	a.history.add(c)
	a.count(verb + " " + string(c.outcome))
	switch {
	case c.outcome == unknown && !killed:
		a.t.Errorf("nobody has killed it: %s", c)
	case c.outcome == failed && (verb == "DEL" || !strings.HasPrefix(c.note, "code 11:")):
		a.t.Errorf("%s", c)
	}
	if c.outcome == ok && a.owner != "" && verb == "ADD" && a.pool == "strict" != strictNet.Contains(c.addr) {
		a.t.Errorf("of another pool: %s", c)
	}
	return c
}

// plugin runs the IPAM plugin as a main plugin does.
func (a *attachment) plugin(ctx context.Context, verb string, env []string) (out []byte, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "underlay"))
	cmd.Stdin = strings.NewReader(conf(a.node, a.pool))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+a.id, "CNI_NETNS="+a.netns, "CNI_IFNAME=eth0", "CNI_PATH="+bin)
	cmd.Env = append(cmd.Env, env...)
	if a.owner != "" {
		cmd.Env = append(cmd.Env, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=db;K8S_POD_NAME="+a.owner)
	}
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	if err := a.node.Do(cmd.Start); err != nil {
		if ctx.Err() != nil {
			return nil, errKilled
		}
		return nil, err
	}
	switch err := cmd.Wait(); {
	case cmd.ProcessState == nil:
		return nil, err
	case !cmd.ProcessState.Exited():
		return nil, errKilled
	case cmd.ProcessState.Success():
		return stdout.Bytes(), nil // Wait may complain that its time was over right then
	default:
		return stdout.Bytes(), err
	}
}

var errKilled = errors.New("killed")

// judgeCall reads an answer.
func judgeCall(verb string, out []byte, err error) (outcome, netip.Addr, string) {
	switch {
	case errors.Is(err, errKilled):
		return unknown, netip.Addr{}, ""
	case err != nil:
		var told types.Error
		if json.Unmarshal(out, &told) != nil || told.Code == 0 {
			return failed, netip.Addr{}, fmt.Sprintf("%v: %s", err, out)
		}
		return failed, netip.Addr{}, fmt.Sprintf("code %d: %s; %s", told.Code, told.Msg, told.Details)
	case verb == "DEL":
		return ok, netip.Addr{}, ""
	}
	var result current.Result
	if err := json.Unmarshal(out, &result); err != nil || len(result.IPs) != 1 {
		return failed, netip.Addr{}, fmt.Sprintf("result of an ADD: %v: %s", err, out)
	}
	addr, _ := netip.AddrFromSlice(result.IPs[0].Address.IP)
	return ok, addr.Unmap(), ""
}
