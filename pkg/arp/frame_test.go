package arp

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	goldenMAC = mac{2, 0, 0, 0, 0, 0x0a}
	golden4   = netip.MustParseAddr("192.0.2.10")
	golden6   = netip.MustParseAddr("2001:db8::10")
)

// Frames of goldenMAC, by layer: Ethernet; ARP or IPv6; ICMPv6; its option.
const (
	goldenARPProbe = "ffffffffffff 02000000000a 0806 " +
		"0001 0800 06 04 0001 02000000000a 00000000 000000000000 c000020a"
	goldenARPRequest = "ffffffffffff 02000000000a 0806 " +
		"0001 0800 06 04 0001 02000000000a c000020a 000000000000 c000020a"
	goldenARPReply = "ffffffffffff 02000000000a 0806 " +
		"0001 0800 06 04 0002 02000000000a c000020a 02000000000a c000020a"
	goldenSolicitation = "3333ff000010 02000000000a 86dd " +
		"60000000 0020 3a ff 00000000000000000000000000000000 ff0200000000000000000001ff000010 " +
		"87 00 35ba 00000000 20010db8000000000000000000000010 " +
		"0e 01 010203040506"
	goldenQuestion = "3333ff000010 02000000000a 86dd " +
		"60000000 0020 3a ff fe80000000000000000000fffe00000a ff0200000000000000000001ff000010 " +
		"87 00 4c31 00000000 20010db8000000000000000000000010 " +
		"01 01 02000000000a"
	goldenAdvertisement = "333300000001 02000000000a 86dd " +
		"60000000 0020 3a ff 20010db8000000000000000000000010 ff020000000000000000000000000001 " +
		"88 00 f903 20000000 20010db8000000000000000000000010 " +
		"02 01 02000000000a"
)

func TestFrames(t *testing.T) {
	tests := []struct {
		name string
		got  []byte
		want string
	}{
		{"arp probe", arpProbe(goldenMAC, golden4), goldenARPProbe},
		{"arp reply", arpReply(goldenMAC, golden4), goldenARPReply},
		{"solicitation", ndProbe(goldenMAC, golden6, mac{1, 2, 3, 4, 5, 6}), goldenSolicitation},
		{"question", ndAsk(goldenMAC, golden6), goldenQuestion},
		{"advertisement", ndAnnounce(goldenMAC, golden6), goldenAdvertisement},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(raw(tt.want), tt.got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParse(t *testing.T) {
	other := mac{2, 0, 0, 0, 0, 0x0b}
	advertised := claim{addr: golden6, holder: goldenMAC, source: goldenMAC}
	tests := []struct {
		name  string
		frame []byte
		want  claim // the zero value: none
	}{
		{"arp probe", raw(goldenARPProbe), claim{addr: golden4, holder: goldenMAC, source: goldenMAC, probe: true}},
		{"arp announcement", raw(goldenARPRequest), claim{addr: golden4, holder: goldenMAC, source: goldenMAC}},
		{"arp reply", raw(goldenARPReply), claim{addr: golden4, holder: goldenMAC, source: goldenMAC}},
		{"arp reply to a probe", arpFrame(arpIsAt, goldenMAC, golden4, other, netip.IPv4Unspecified()),
			claim{addr: golden4, holder: goldenMAC, source: goldenMAC}},
		{"arp question after another", arpFrame(arpRequest, goldenMAC, golden4, mac{}, netip.MustParseAddr("192.0.2.1")),
			claim{addr: golden4, holder: goldenMAC, source: goldenMAC}},
		{"arp sent on by another MAC", patch(goldenARPReply, 6, other[:]...), claim{addr: golden4, holder: goldenMAC, source: other}},
		{"arp, padded", append(raw(goldenARPReply), make([]byte, 18)...), claim{addr: golden4, holder: goldenMAC, source: goldenMAC}},
		{"arp, cut", raw(goldenARPReply)[:41], claim{}},
		{"arp, no Ethernet", patch(goldenARPReply, 15, 6), claim{}},
		{"arp, no IPv4", patch(goldenARPReply, 16, 0x86, 0xdd), claim{}},
		{"arp, long MAC", patch(goldenARPReply, 18, 8), claim{}},
		{"arp, reverse", patch(goldenARPReply, 20, 0, 3), claim{}},
		{"arp reply from nobody", patch(goldenARPReply, 28, 0, 0, 0, 0), claim{}},
		{"arp probe for nothing", patch(goldenARPProbe, 38, 0, 0, 0, 0), claim{}},

		{"probe", raw(goldenSolicitation), claim{golden6, goldenMAC, goldenMAC, true, []byte{1, 2, 3, 4, 5, 6}}},
		{"probe without nonce", patchND(goldenSolicitation, 78, 1), claim{addr: golden6, holder: goldenMAC, source: goldenMAC, probe: true}},
		{"advertisement", raw(goldenAdvertisement), advertised},
		{"advertisement, padded", append(raw(goldenAdvertisement), 1, 2, 3), advertised},
		{"advertisement for another MAC", patchND(goldenAdvertisement, 80, other[:]...), claim{addr: golden6, holder: other, source: goldenMAC}},
		{"advertisement sent on by another MAC", patch(goldenAdvertisement, 6, other[:]...), claim{addr: golden6, holder: goldenMAC, source: other}},
		{"advertisement without option", short(goldenAdvertisement), advertised},
		{"question", patchND(goldenSolicitation, 22, golden6.AsSlice()...), claim{}},
		{"router solicitation", patchND(goldenSolicitation, 54, 133), claim{}},
		{"code 1", patchND(goldenAdvertisement, 55, 1), claim{}},
		{"routed", patchND(goldenAdvertisement, 21, 254), claim{}},
		{"version 4", patchND(goldenAdvertisement, 14, 0x40), claim{}},
		{"udp", patchND(goldenAdvertisement, 20, 17), claim{}},
		{"wrong checksum", patch(goldenAdvertisement, 56, 0), claim{}},
		{"empty option", patchND(goldenAdvertisement, 79, 0), claim{}},
		{"option past the end", patchND(goldenAdvertisement, 79, 2), claim{}},
		{"longer than the frame", patch(goldenAdvertisement, 19, 40), claim{}},
		{"shorter than a message", patch(goldenAdvertisement, 19, 23), claim{}},
		{"cut", raw(goldenAdvertisement)[:77], claim{}},

		{"nothing", nil, claim{}},
		{"cut Ethernet", raw(goldenARPReply)[:13], claim{}},
		{"other protocol", patch(goldenARPReply, 12, 0x88, 0xcc), claim{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parse(tt.frame)
			if !ok {
				got = claim{}
			}
			if diff := cmp.Diff(tt.want, got, compareAddrs, cmp.AllowUnexported(claim{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{goldenARPProbe, goldenARPRequest, goldenARPReply, goldenSolicitation, goldenAdvertisement} {
		f.Add(raw(s))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		p, err := newProber(Iface{"eth0", 2, goldenMAC[:]}, []netip.Addr{golden4, golden6})
		must(t, err)
		// As it is, and with the checksum that lets it in.
		for _, frame := range [][]byte{frame, mend(slices.Clone(frame))} {
			before := slices.Clone(frame)
			c, ok := parse(frame)
			if ok && (!c.addr.IsValid() || c.addr.IsUnspecified()) {
				t.Errorf("%x claims %s", frame, c.addr)
			}
			conflict, ok := p.judge(frame)
			if ok && (conflict.Addr != golden4 && conflict.Addr != golden6 || len(conflict.MAC) != 6) {
				t.Errorf("%x is a conflict: %v", frame, conflict)
			}
			if !slices.Equal(before, frame) {
				t.Errorf("%x was changed to %x", before, frame)
			}
		}
	})
}

// raw is the frame that spell, or a golden constant, spells.
func raw(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// spell writes a frame as the golden constants do.
func spell(frame []byte) string {
	for _, s := range []string{goldenARPProbe, goldenARPRequest, goldenARPReply, goldenSolicitation, goldenAdvertisement} {
		if slices.Equal(raw(s), frame) {
			return s
		}
	}
	return hex.EncodeToString(frame)
}

// patch overwrites bytes of a frame.
func patch(s string, at int, bytes ...byte) []byte {
	f := raw(s)
	copy(f[at:], bytes)
	return f
}

// patchND is patch with the checksum made right again.
func patchND(s string, at int, bytes ...byte) []byte { return mend(patch(s, at, bytes...)) }

// short takes the option off an ND frame.
func short(s string) []byte { return mend(patch(s, 19, lenND)[:lenEthernet+lenIPv6+lenND]) }

// mend sets the ICMPv6 checksum of a frame, if it is long enough to have one.
func mend(f []byte) []byte {
	if len(f) < lenEthernet+lenIPv6+lenND {
		return f
	}
	packet := f[lenEthernet:]
	if n := lenIPv6 + int(binary.BigEndian.Uint16(packet[4:])); n >= lenIPv6+lenND && n < len(packet) {
		packet = packet[:n]
	}
	sum := packet[lenIPv6+offsetICMPv6Sum:][:2]
	copy(sum, []byte{0, 0})
	binary.BigEndian.PutUint16(sum, checksum(packet))
	return f
}
