package fault

import (
	"fmt"
	"os"
	"strings"
)

// Boot is the boot ID of the running kernel.
func Boot() (string, error) {
	id, err := os.ReadFile(bootFile())
	if err != nil {
		return "", fmt.Errorf("boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
