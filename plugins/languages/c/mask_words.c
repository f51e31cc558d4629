// Masks words in bodies, and drops messages whose body is empty. The same policy as the Rust
// one in plugins/cookbook/mask-words; README.md here says how it is built.
//
// Arguments belong to the policy, which frees them. Results are freed by generated code, so they are
// allocated with malloc.

#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "filter_policy.h"

static struct config config;
// Whether a word begins with this byte.
static bool begins[256];

// `init`: returns false to refuse the configuration, with the reason in `err`.
bool exports_halley_policy_lifecycle_init(filter_policy_string_t *json, filter_policy_string_t *err) {
    const char *mistake = config_read(&config, (const char *)json->ptr, json->len);
    filter_policy_string_free(json);
    if (mistake) {
        filter_policy_string_dup(err, mistake);
        return false;
    }
    memset(begins, 0, sizeof begins);
    for (size_t i = 0; i < config.count; i++) begins[(unsigned char)config.words[i].text[0]] = true;
    return true;
}

// The number of bytes of the character at `at`; 0 if it is not UTF-8 (Unicode 15, table 3-7).
static size_t character(const uint8_t *at, const uint8_t *end) {
    uint8_t lead = at[0];
    if (lead < 0x80) return 1;
    size_t length = lead >= 0xC2 && lead <= 0xDF ? 2 : (lead & 0xF0) == 0xE0 ? 3 : lead >= 0xF0 && lead <= 0xF4 ? 4 : 0;
    if (length == 0 || (size_t)(end - at) < length) return 0;
    uint8_t least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    uint8_t most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (at[1] < least || at[1] > most) return 0;
    for (size_t i = 2; i < length; i++) {
        if ((at[i] & 0xC0) != 0x80) return 0;
    }
    return length;
}

static bool is_utf8(const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        size_t length = character(at, end);
        if (length == 0) return false;
        at += length;
    }
    return true;
}

// The longest word at this position; the words are sorted by length.
static const struct word *word_at(const uint8_t *at, const uint8_t *end) {
    if (!begins[*at]) return NULL;
    for (size_t i = 0; i < config.count; i++) {
        const struct word *word = &config.words[i];
        if ((size_t)(end - at) >= word->length && memcmp(at, word->text, word->length) == 0) return word;
    }
    return NULL;
}

// Writes the body with each word masked to `to`, unless that is NULL, and returns its length.
static size_t mask(const filter_policy_list_u8_t *body, uint8_t *to, bool *found) {
    const uint8_t *at = body->ptr, *end = at + body->len;
    size_t length = 0;
    while (at < end) {
        const struct word *word = word_at(at, end);
        if (!word) {
            if (to) to[length] = *at;
            length++;
            at++;
            continue;
        }
        *found = true;
        for (size_t i = 0; i < word->characters; i++, length += config.mask_length) {
            if (to) memcpy(to + length, config.mask, config.mask_length);
        }
        at += word->length;
    }
    return length;
}

static void decide(const filter_policy_list_u8_t *body, exports_halley_policy_filter_verdict_t *verdict) {
    verdict->tag = EXPORTS_HALLEY_POLICY_FILTER_VERDICT_PASS;
    if (body->len == 0) {
        verdict->tag = EXPORTS_HALLEY_POLICY_FILTER_VERDICT_DROP;
        filter_policy_string_dup(&verdict->val.drop, "empty");
        return;
    }
    bool found = false;
    size_t length = mask(body, NULL, &found);
    if (!found || !is_utf8(body->ptr, body->ptr + body->len)) return;
    // Zeroes mean absent and empty, which leave the message unchanged.
    verdict->tag = EXPORTS_HALLEY_POLICY_FILTER_VERDICT_AMEND;
    verdict->val.amend.body.is_some = true;
    verdict->val.amend.body.val.ptr = malloc(length);
    verdict->val.amend.body.val.len = length;
    if (!verdict->val.amend.body.val.ptr) abort();
    mask(body, verdict->val.amend.body.val.ptr, &found);
}

// `filter`: returns one verdict per message, in the same order.
void exports_halley_policy_filter_filter(exports_halley_policy_filter_source_t *source,
                                         exports_halley_policy_filter_list_message_t *messages,
                                         exports_halley_policy_filter_list_verdict_t *verdicts) {
    verdicts->len = messages->len;
    verdicts->ptr = calloc(messages->len, sizeof *verdicts->ptr);
    if (messages->len > 0 && !verdicts->ptr) abort();
    for (size_t i = 0; i < messages->len; i++) decide(&messages->ptr[i].body, &verdicts->ptr[i]);
    exports_halley_policy_filter_source_free(source);
    exports_halley_policy_filter_list_message_free(messages);
}
