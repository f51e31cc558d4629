// Package mask finds and masks words. It does not depend on WebAssembly, so that `go test` can run
// it.
package mask

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"
)

// Set by Configure: the words, longest first, and the mask character.
var (
	words [][]byte
	with  = "*"
	// first[b] tells whether a word begins with the byte b.
	first [256]bool
)

// Configure parses the plugin's `config` table. The error names the wrong key.
func Configure(config string) error {
	table := struct {
		Words []string `json:"words"`
		Mask  *string  `json:"mask"`
	}{}
	decoder := json.NewDecoder(strings.NewReader(config))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&table); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if len(table.Words) == 0 {
		return errors.New("config.words: name at least one word, and no empty ones")
	}
	words, first, with = nil, [256]bool{}, "*"
	for _, word := range table.Words {
		if word == "" {
			return errors.New("config.words: name at least one word, and no empty ones")
		}
		words = append(words, []byte(word))
		first[word[0]] = true
	}
	sort.SliceStable(words, func(a, b int) bool { return len(words[a]) > len(words[b]) })
	if table.Mask != nil {
		with = *table.Mask
	}
	if utf8.RuneCountInString(with) != 1 {
		return errors.New("config.mask: give one character")
	}
	return nil
}

// Masked returns the body with each character of each word replaced; nil if it contains no word, or
// is not UTF-8.
func Masked(body []byte) []byte {
	if !utf8.Valid(body) {
		return nil
	}
	var masked []byte
	copied := 0
	for at := 0; at < len(body); {
		word := wordAt(body[at:])
		if word == nil {
			at++
			continue
		}
		masked = append(masked, body[copied:at]...)
		masked = append(masked, strings.Repeat(with, utf8.RuneCount(word))...)
		at += len(word)
		copied = at
	}
	if copied == 0 {
		return nil
	}
	return append(masked, body[copied:]...)
}

func wordAt(text []byte) []byte {
	if !first[text[0]] {
		return nil
	}
	for _, word := range words {
		if bytes.HasPrefix(text, word) {
			return word
		}
	}
	return nil
}
