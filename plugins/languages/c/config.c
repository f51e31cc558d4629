// Parses the configuration with jsmn, a parser that only returns the position of each value.

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include <jsmn.h>

static const char NO_WORDS[] = "config.words: name at least one word, and no empty ones";

// The number of UTF-8 characters: all bytes except continuation bytes.
static size_t characters(const char *text, size_t length) {
    size_t count = 0;
    for (size_t i = 0; i < length; i++) count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

// A string's text. The gateway's JSON is UTF-8 and escapes quotes, backslashes and control
// characters. The latter (\n, \u0001) are not allowed in a word: the function returns false.
static bool unescape(const char *json, const jsmntok_t *token, struct word *word) {
    if (token->type != JSMN_STRING) return false;
    word->length = 0;
    word->text = malloc((size_t)(token->end - token->start) + 1);
    if (!word->text) abort();
    for (int i = token->start; i < token->end; i++) {
        if (json[i] == '\\' && json[++i] != '"' && json[i] != '\\') return false;
        word->text[word->length++] = json[i];
    }
    word->characters = characters(word->text, word->length);
    return word->length > 0;
}

static int longer_first(const void *a, const void *b) {
    size_t first = ((const struct word *)a)->length, second = ((const struct word *)b)->length;
    return first < second ? 1 : first > second ? -1 : 0;
}

static const char *read_words(struct config *config, const char *json, const jsmntok_t *list) {
    if (list->type != JSMN_ARRAY || list->size == 0) return NO_WORDS;
    config->count = (size_t)list->size;
    config->words = calloc(config->count, sizeof *config->words);
    if (!config->words) abort();
    for (size_t i = 0; i < config->count; i++) {
        if (!unescape(json, &list[1 + i], &config->words[i])) return NO_WORDS;
    }
    qsort(config->words, config->count, sizeof *config->words, longer_first);
    return NULL;
}

static const char *read_mask(struct config *config, const char *json, const jsmntok_t *value) {
    struct word mask;
    if (!unescape(json, value, &mask) || mask.characters != 1) return "config.mask: give one character";
    config->mask = mask.text;
    config->mask_length = mask.length;
    return NULL;
}

static bool is_key(const char *json, const jsmntok_t *token, const char *name) {
    size_t length = (size_t)(token->end - token->start);
    return length == strlen(name) && memcmp(json + token->start, name, length) == 0;
}

const char *config_read(struct config *config, const char *json, size_t length) {
    *config = (struct config){.mask = "*", .mask_length = 1};
    jsmn_parser parser;
    jsmn_init(&parser);
    int count = jsmn_parse(&parser, json, length, NULL, 0);
    if (count < 1) return "config: not JSON";
    jsmntok_t *tokens = calloc((size_t)count, sizeof *tokens);
    if (!tokens) abort();
    jsmn_init(&parser);
    jsmn_parse(&parser, json, length, tokens, (unsigned)count);
    const char *mistake = tokens[0].type == JSMN_OBJECT ? NULL : "config: must be a table";
    // A key has one value; a value may contain other values, which are skipped by position.
    for (int key = 1; key < count && !mistake;) {
        const jsmntok_t *value = &tokens[key + 1];
        if (is_key(json, &tokens[key], "words")) mistake = read_words(config, json, value);
        else if (is_key(json, &tokens[key], "mask")) mistake = read_mask(config, json, value);
        else mistake = "config: unknown field, expected `words` or `mask`";
        for (key += 2; key < count && tokens[key].start < value->end;) key++;
    }
    free(tokens);
    return mistake ? mistake : config->count == 0 ? NO_WORDS : NULL;
}
