// The policy's configuration: the words, and the mask character.

#ifndef CONFIG_H
#define CONFIG_H

#include <stdbool.h>
#include <stddef.h>

struct word {
    char *text;
    size_t length;
    size_t characters;
};

struct config {
    // Longest first.
    struct word *words;
    size_t count;
    const char *mask;
    size_t mask_length;
};

// Parses the plugin's `config` table, which is passed as JSON. Returns NULL, or an error message.
// Runs once per instance; its memory is never freed.
const char *config_read(struct config *config, const char *json, size_t length);

#endif
