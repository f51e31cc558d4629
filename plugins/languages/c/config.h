// The policy's configuration: which words, and what takes the place of each character.

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
    // The longest first.
    struct word *words;
    size_t count;
    const char *mask;
    size_t mask_length;
};

// Reads the plugin's `config` table, which arrives as JSON. Returns NULL, or what is wrong with
// it. Runs once in each instance and keeps its memory for as long as the instance lives.
const char *config_read(struct config *config, const char *json, size_t length);

#endif
