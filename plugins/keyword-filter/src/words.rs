//! Finds words in bytes with an Aho-Corasick automaton.
//!
//! Nearly every body contains no word, so what counts is the cost of reading one to its end: two
//! look-ups per byte. Both cases of a letter share a column, so nothing is folded while searching.
//! States near the root, where text stays most of the time, have a row with all transitions; those
//! that do not fit into [`MAX_ROWS`] have only their own edges and a link to a shorter suffix.

use std::ops::Range;

/// The size of all rows together, in bytes: about what processors cache. A thousand words take 0.4 MB,
/// or 1.8 MB in Chinese.
const MAX_ROWS: usize = 2 * 1024 * 1024;
/// In a transition: a word ends here.
const ENDS: u32 = 1 << 31;
const ROOT: u32 = 0;
/// Shorter bodies are searched from one end only.
const MIN_HALVED: usize = 64;

/// Words in one automaton. A state is named by the offset of its row; those without a row lie beyond
/// all rows.
pub(crate) struct Words {
    /// The column of each byte; 0 for bytes that no word contains.
    columns: [u8; 256],
    /// The number of columns.
    width: u32,
    /// The next state for each state and column, with [`ENDS`].
    rows: Vec<u32>,
    /// All states by depth, and a last one that ends the list of edges.
    states: Vec<State>,
    /// The columns and states of all states' children.
    edges: Vec<(u8, u32)>,
    /// The length of the longest word.
    longest: usize,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// The index of its first edge.
    edges: u32,
    /// The state of its longest suffix that is a state.
    suffix: u32,
    /// Whether it is a word.
    is_word: bool,
    /// Whether it or a suffix is a word.
    ends: bool,
}

impl Words {
    /// # Errors
    /// When there are too many to number their states.
    pub(crate) fn new(words: &[String], ignore_case: bool) -> Result<Self, String> {
        Self::with_rows(words, ignore_case, MAX_ROWS)
    }

    fn with_rows(words: &[String], ignore_case: bool, max_rows: usize) -> Result<Self, String> {
        let (columns, width) = columns(words, ignore_case);
        let trie = Trie::new(words, &columns);
        if trie.nodes.len() as u64 * u64::from(width) >= u64::from(ENDS) {
            return Err("they are too many; use several filters".to_owned());
        }
        let longest = words.iter().map(String::len).max().unwrap_or(0);
        let (rows, states, edges) = (Vec::new(), Vec::new(), Vec::new());
        let mut built = Self { columns, width, rows, states, edges, longest };
        built.number(&trie);
        built.link(max_rows);
        Ok(built)
    }

    /// Numbers the states by depth.
    fn number(&mut self, trie: &Trie) {
        self.states.reserve_exact(trie.nodes.len() + 1);
        self.edges.reserve_exact(trie.nodes.len());
        let mut by_depth = vec![0];
        let mut at = 0;
        while let Some(&index) = by_depth.get(at) {
            let node: &Node = &trie.nodes[index];
            let edges = self.edges.len() as u32;
            self.states.push(State { edges, suffix: ROOT, is_word: node.is_word, ends: node.is_word });
            for child in trie.children(node) {
                self.edges.push((trie.nodes[child].column, by_depth.len() as u32 * self.width));
                by_depth.push(child);
            }
            at += 1;
        }
        self.states.push(State { edges: self.edges.len() as u32, ..State::default() });
    }

    /// Adds suffixes and rows. A state's suffix is nearer to the root, so it is complete before.
    fn link(&mut self, max_rows: usize) {
        let (width, states) = (self.width as usize, self.states.len() - 1);
        let with_row = (max_rows / size_of::<u32>() / width).clamp(1, states);
        self.rows.reserve_exact(with_row * width);
        for at in 0..states {
            let suffix = self.states[at].suffix;
            let has_row = at < with_row;
            // A state continues like its suffix, except along its own edges.
            match at {
                0 => self.rows.resize(width, ROOT),
                _ if has_row => self.rows.extend_from_within(suffix as usize..suffix as usize + width),
                _ => {}
            }
            for edge in self.edges_of(at) {
                let (column, child) = self.edges[edge];
                let suffix = if at == 0 { ROOT } else { self.next(suffix, column) & !ENDS };
                let suffix_ends = self.state(suffix).ends;
                let child_state = &mut self.states[(child / self.width) as usize];
                child_state.suffix = suffix;
                child_state.ends |= suffix_ends;
                if has_row {
                    let flag = if child_state.ends { ENDS } else { 0 };
                    self.rows[at * width + usize::from(column)] = child | flag;
                }
            }
        }
    }

    /// Whether a word occurs.
    pub(crate) fn occur_in(&self, body: &[u8]) -> bool {
        // Both halves at once, because each look-up waits for the one before. The second half begins
        // early enough for a word across the middle.
        let half = (body.len() + self.longest) / 2 + 1;
        if body.len() < MIN_HALVED || half >= body.len() {
            return self.first_end(body).is_some();
        }
        let (mut one, mut other) = (ROOT, ROOT);
        for (first, second) in body[..half].iter().zip(&body[body.len() - half..]) {
            one = self.next(one, self.columns[usize::from(*first)]);
            other = self.next(other, self.columns[usize::from(*second)]);
            if (one | other) & ENDS != 0 {
                return true;
            }
        }
        false
    }

    /// The words from left to right, not overlapping; of those that begin at the same byte, the
    /// longest.
    pub(crate) fn find_all<'a>(&'a self, body: &'a [u8]) -> impl Iterator<Item = Range<usize>> + 'a {
        let mut from = 0;
        std::iter::from_fn(move || {
            let found = self.find(body, from)?;
            from = found.end;
            Some(found)
        })
    }

    fn find(&self, body: &[u8], from: usize) -> Option<Range<usize>> {
        let end = from + self.first_end(&body[from..])?;
        // An earlier word that ends later is no longer than the longest one.
        let from = from.max(end.saturating_sub(self.longest));
        (from..end).find_map(|begin| Some(begin..begin + self.longest_at(&body[begin..])?))
    }

    /// Where a word ends first.
    fn first_end(&self, body: &[u8]) -> Option<usize> {
        let mut state = ROOT;
        let ends = body.iter().position(|byte| {
            state = self.next(state, self.columns[usize::from(*byte)]);
            state & ENDS != 0
        });
        ends.map(|at| at + 1)
    }

    /// The length of the longest word at the beginning.
    fn longest_at(&self, body: &[u8]) -> Option<usize> {
        let (mut state, mut longest) = (ROOT, None);
        for (at, byte) in body.iter().enumerate() {
            let Some(child) = self.child(state, self.columns[usize::from(*byte)]) else { break };
            if self.state(child).is_word {
                longest = Some(at + 1);
            }
            state = child;
        }
        longest
    }

    /// The state after this one, with [`ENDS`].
    #[inline]
    fn next(&self, state: u32, column: u8) -> u32 {
        match self.rows.get(state as usize + usize::from(column)) {
            Some(next) => *next,
            None => self.next_without_row(state, column),
        }
    }

    #[cold]
    fn next_without_row(&self, mut state: u32, column: u8) -> u32 {
        loop {
            if let Some(next) = self.rows.get(state as usize + usize::from(column)) {
                return *next;
            }
            if let Some(child) = self.child(state, column) {
                return if self.state(child).ends { child | ENDS } else { child };
            }
            state = self.state(state).suffix;
        }
    }

    fn child(&self, state: u32, column: u8) -> Option<u32> {
        let edges = &self.edges[self.edges_of((state / self.width) as usize)];
        edges.iter().find(|(own, _)| *own == column).map(|(_, child)| *child)
    }

    fn edges_of(&self, index: usize) -> Range<usize> {
        self.states[index].edges as usize..self.states[index + 1].edges as usize
    }

    fn state(&self, state: u32) -> &State {
        &self.states[(state / self.width) as usize]
    }
}

/// The column of each byte, and the number of columns. UTF-8 does not use all bytes, so they fit.
fn columns(words: &[String], ignore_case: bool) -> ([u8; 256], u32) {
    let mut occurs = [false; 256];
    for byte in words.iter().flat_map(|word| word.bytes()) {
        occurs[usize::from(byte)] = true;
        if ignore_case {
            occurs[usize::from(byte.to_ascii_lowercase())] = true;
            occurs[usize::from(byte.to_ascii_uppercase())] = true;
        }
    }
    let mut columns = [0; 256];
    let mut width = 1;
    for byte in (0..=u8::MAX).filter(|byte| occurs[usize::from(*byte)]) {
        let folded = usize::from(if ignore_case { byte.to_ascii_uppercase() } else { byte });
        // Upper case comes first.
        if columns[folded] == 0 {
            columns[folded] = width as u8;
            width += 1;
        }
        columns[usize::from(byte)] = columns[folded];
    }
    (columns, width)
}

/// All words as paths from the first node.
struct Trie {
    nodes: Vec<Node>,
}

/// A node, in lists of siblings.
struct Node {
    column: u8,
    is_word: bool,
    first_child: Option<u32>,
    next_sibling: Option<u32>,
}

impl Trie {
    fn new(words: &[String], columns: &[u8; 256]) -> Self {
        let root = Node { column: 0, is_word: false, first_child: None, next_sibling: None };
        let mut trie = Self { nodes: vec![root] };
        for word in words {
            let end = word.bytes().fold(0, |node, byte| trie.add_child(node, columns[usize::from(byte)]));
            trie.nodes[end].is_word = true;
        }
        trie
    }

    fn add_child(&mut self, parent: usize, column: u8) -> usize {
        let known = self.children(&self.nodes[parent]).find(|child| self.nodes[*child].column == column);
        known.unwrap_or_else(|| {
            let new = self.nodes.len();
            let next_sibling = self.nodes[parent].first_child.replace(new as u32);
            self.nodes.push(Node { column, is_word: false, first_child: None, next_sibling });
            new
        })
    }

    fn children(&self, node: &Node) -> impl Iterator<Item = usize> {
        let next = |child: &u32| self.nodes[*child as usize].next_sibling;
        std::iter::successors(node.first_child, next).map(|child| child as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator of small numbers: the same ones in every run.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % bound
        }

        /// Of few letters, so that words overlap and contain each other.
        fn text(&mut self, least: usize, most: usize) -> String {
            let length = least + self.below(most - least + 1);
            (0..length).map(|_| ['a', 'A', 'b', '广', '[', 'é'][self.below(6)]).collect()
        }
    }

    fn found(words: &Words, body: &[u8]) -> Vec<Range<usize>> {
        words.find_all(body).collect()
    }

    /// The same by comparing every word at every byte.
    fn compared(words: &[String], ignore_case: bool, body: &[u8]) -> Vec<Range<usize>> {
        let is_at = |word: &[u8], begin: usize| {
            body.get(begin..begin + word.len())
                .is_some_and(|text| text == word || ignore_case && text.eq_ignore_ascii_case(word))
        };
        let (mut found, mut begin) = (Vec::new(), 0);
        while begin < body.len() {
            let here = words.iter().map(String::as_bytes).filter(|word| is_at(word, begin));
            let longest = here.map(<[u8]>::len).max();
            found.extend(longest.map(|longest| begin..begin + longest));
            begin += longest.unwrap_or(1);
        }
        found
    }

    #[test]
    fn the_automaton_finds_what_a_comparison_of_all_words_finds() {
        let mut dice = Dice(7);
        for round in 0..3_000 {
            let words: Vec<String> = (0..1 + dice.below(12)).map(|_| dice.text(1, 6)).collect();
            let (ignore_case, rows) = (round % 2 == 0, [0, 64, MAX_ROWS][round % 3]);
            let automaton = Words::with_rows(&words, ignore_case, rows).unwrap();
            // As long as no body and as long as several of them.
            for most in [0, 10, 60, 200] {
                let body = dice.text(0, most).into_bytes();
                let expected = compared(&words, ignore_case, &body);
                assert_eq!(found(&automaton, &body), expected, "{words:?} in {body:?}, {rows} bytes of rows");
                assert_eq!(automaton.occur_in(&body), !expected.is_empty(), "{words:?} in {body:?}");
            }
        }
    }

    #[test]
    fn a_word_across_the_middle_of_a_body_is_found() {
        let words = Words::new(&["needle".to_owned(), "a".repeat(40)], true).unwrap();
        for length in 70..90 {
            for at in 0..=length - 6 {
                let mut body = vec![b'.'; length];
                body[at..at + 6].copy_from_slice(b"NEEDLE");
                assert!(words.occur_in(&body), "at {at} of {length}");
                assert_eq!(found(&words, &body), vec![std::ops::Range { start: at, end: at + 6 }]);
            }
        }
    }

    #[test]
    fn rows_are_limited_in_size() {
        let mut dice = Dice(1);
        let words: Vec<String> = (0..2_000).map(|_| dice.text(8, 16)).collect();
        for (limit, exceeds) in [(MAX_ROWS, false), (4096, true)] {
            let automaton = Words::with_rows(&words, true, limit).unwrap();
            let rows = automaton.rows.len() * size_of::<u32>();
            assert!(rows <= limit, "{rows}");
            assert_eq!(rows < (automaton.states.len() - 1) * automaton.width as usize * 4, exceeds);
        }
    }
}
