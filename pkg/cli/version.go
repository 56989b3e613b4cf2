package cli

import (
	"runtime/debug"
	"strings"

	"github.com/containernetworking/cni/pkg/version"
	"github.com/spf13/cobra"
)

// versionView is what the binary knows of itself.
type versionView struct {
	// Version of the module, as the Go tool stamped it.
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Module   string `json:"module"`
	// CNIVersions are the versions of the specification that the plugins know.
	CNIVersions []string `json:"cniVersions"`
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of this program and the CNI versions that the plugins know",
		Example: "  underlayctl version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionView{Version: "unknown", CNIVersions: version.All.SupportedVersions()}
			if info, ok := debug.ReadBuildInfo(); ok {
				v.Version, v.Go, v.Module = info.Main.Version, info.GoVersion, info.Main.Path
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Revision = s.Value
					}
				}
			}
			return a.print(cmd, v, func(t *table) {
				t.field("Version", v.Version)
				t.field("Revision", v.Revision)
				t.field("Go", v.Go)
				t.field("Module", v.Module)
				t.field("CNI", strings.Join(v.CNIVersions, " "))
			})
		},
	}
}
