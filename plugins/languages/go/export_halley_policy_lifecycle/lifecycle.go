// Package export_halley_policy_lifecycle is where wit-bindgen's code looks for `init`.
package export_halley_policy_lifecycle

import (
	"wit_component/mask"

	. "go.bytecodealliance.org/pkg/wit/types"
)

// Init parses the plugin's `config` table. An error refuses the version.
func Init(config string) Result[Unit, string] {
	if err := mask.Configure(config); err != nil {
		return Err[Unit](err.Error())
	}
	return Ok[Unit, string](Unit{})
}
