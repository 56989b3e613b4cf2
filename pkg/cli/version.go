package cli

import (
	"runtime/debug"
	"strings"

	"github.com/containernetworking/cni/pkg/version"
	"github.com/spf13/cobra"

	"github.com/underlay-cni/underlay/pkg/cli/term"
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
			return a.print(cmd, v, func(t *term.Table) {
				t.Field("Version", v.Version)
				t.Field("Revision", v.Revision)
				t.Field("Go", v.Go)
				t.Field("Module", v.Module)
				t.Field("CNI", strings.Join(v.CNIVersions, " "))
			})
		},
	}
}
