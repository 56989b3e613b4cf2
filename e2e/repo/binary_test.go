package repo

import (
	"debug/elf"
	"os"
	"path/filepath"
	"testing"
)

func TestBinaries(t *testing.T) {
	arm := armPrograms(t)
	const none = 0
	for _, build := range []struct {
		name, dir string
		machine   elf.Machine
	}{
		{"this machine", programs(t), hostMachine(t)},
		{"arm64", arm, elf.EM_AARCH64},
	} {
		for _, program := range []struct {
			name  string
			bytes int64 // at most; none: no limit
		}{
			// A plugin is read from disk at every ADD.
			{"macvlan", 4_500_000},
			{"ipvlan", 4_500_000},
			{"hostgw", 4_500_000},
			{"vxlan", 4_500_000},
			{"underlay", 4_500_000},
			{"underlayctl", none},
			{"underlayd", none},
		} {
			t.Run(build.name+"/"+program.name, func(t *testing.T) {
				path := filepath.Join(build.dir, program.name)
				if info, err := os.Stat(path); err != nil {
					t.Fatal(err)
				} else if program.bytes != none && info.Size() > program.bytes {
					t.Errorf("%d bytes, want at most %d", info.Size(), program.bytes)
				}
				file, err := elf.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				if file.Machine != build.machine {
					t.Errorf("built for %s, want %s", file.Machine, build.machine)
				}
				for _, header := range file.Progs {
					if header.Type == elf.PT_INTERP || header.Type == elf.PT_DYNAMIC {
						t.Errorf("has %s: not static", header.Type)
					}
				}
				if file.Section(".symtab") != nil || file.Section(".debug_info") != nil || file.Section(".zdebug_info") != nil {
					t.Error("has symbols or debug information: not stripped")
				}
			})
		}
	}
}

// hostMachine is what this test itself was built for.
func hostMachine(t *testing.T) elf.Machine {
	t.Helper()
	self, err := elf.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	return self.Machine
}
