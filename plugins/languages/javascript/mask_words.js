// Masks words in bodies, and drops messages whose body is empty. The same policy as the
// Rust one in plugins/cookbook/mask-words; README.md here says how it is built.

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const bytes = new TextEncoder();

/** Finds any of the words, at each place the longest. Set by `init`. */
let words = /(?!)/g;
let mask = "*";

/** A refusal of the configuration: the text says which key is wrong, and what to write. */
function refuse(text) {
  throw text;
}

export const lifecycle = {
  init(json) {
    const config = JSON.parse(json);
    for (const key of Object.keys(config)) {
      if (key !== "words" && key !== "mask") refuse(`config: unknown field \`${key}\`, expected \`words\` or \`mask\``);
    }
    const wanted = config.words;
    if (!Array.isArray(wanted) || wanted.length === 0 || wanted.some((w) => typeof w !== "string" || w === "")) {
      refuse("config.words: name at least one word, and no empty ones");
    }
    mask = config.mask ?? "*";
    if (typeof mask !== "string" || [...mask].length !== 1) refuse("config.mask: give one character");
    const longestFirst = [...wanted].sort((a, b) => b.length - a.length);
    words = new RegExp(longestFirst.map((word) => word.replace(/[.*+?^${}()|[\]\\\/-]/g, "\\$&")).join("|"), "g");
  },
};

/** The text of a body; `undefined` where it is not UTF-8. */
function text(body) {
  try {
    return utf8.decode(body);
  } catch {
    return undefined;
  }
}

function verdict(message) {
  if (message.body.length === 0) return { tag: "drop", val: "empty" };
  const before = text(message.body);
  if (before === undefined) return { tag: "pass" };
  const after = before.replace(words, (word) => mask.repeat([...word].length));
  if (after === before) return { tag: "pass" };
  return { tag: "amend", val: { body: bytes.encode(after), except: [], also: [], once: [] } };
}

export const filter = {
  filter(source, messages) {
    return messages.map(verdict);
  },
};
