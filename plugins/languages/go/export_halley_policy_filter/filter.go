// Package export_halley_policy_filter is where wit-bindgen's code looks for the hook `filter`.
package export_halley_policy_filter

import (
	"wit_component/halley_policy_filter"
	"wit_component/halley_policy_types"
	"wit_component/mask"

	. "go.bytecodealliance.org/pkg/wit/types"
)

// Filter returns one verdict per message, in the same order.
func Filter(_ halley_policy_types.Source, messages []halley_policy_types.Message) []halley_policy_filter.Verdict {
	verdicts := make([]halley_policy_filter.Verdict, 0, len(messages))
	for _, message := range messages {
		verdicts = append(verdicts, verdict(message.Body))
	}
	return verdicts
}

func verdict(body []byte) halley_policy_filter.Verdict {
	if len(body) == 0 {
		return halley_policy_filter.MakeVerdictDrop("empty")
	}
	masked := mask.Masked(body)
	if masked == nil {
		return halley_policy_filter.MakeVerdictPass()
	}
	return halley_policy_filter.MakeVerdictAmend(halley_policy_filter.Amendment{Body: Some(masked)})
}
