//! The dependency graph of the files of `host/`.
//!
//! The definition is mechanical. There is an edge from file A to file B if A names, in a `use` or a
//! path, an item that B defines. Re-exports are followed to the defining file. A `pub use` is no edge
//! unless the file uses the name itself, and neither is a path that ends at a module. Methods do not
//! count. Code that only tests compile does not count either: items under `#[cfg(test)]` or
//! `#[cfg(any(test, ...))]`, and files of modules that are declared so.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The text of each source file by path, such as `policy/chain.rs`.
pub type Sources = BTreeMap<String, String>;
/// The edges of each file: the other file, with the first path that names one of its items.
pub type Edges = BTreeMap<String, BTreeMap<String, String>>;

/// The edges among these files, of which `lib.rs` is the root.
pub fn edges(sources: &Sources) -> Edges {
    let modules = modules(sources);
    let mut edges = Edges::new();
    for (path, module) in &modules {
        let mut named = BTreeMap::new();
        for name in module.names() {
            if let Some(Found::Item(file)) = resolve(&modules, path, &name, 0)
                && file != module.file
            {
                named.entry(file).or_insert_with(|| name.join("::"));
            }
        }
        edges.insert(module.file.clone(), named);
    }
    edges
}

/// The shortest cycle through each file that is on one, as a chain of text; each cycle once.
pub fn cycles(edges: &Edges) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut chains = Vec::new();
    for file in edges.keys() {
        let Some(cycle) = shortest_cycle(edges, file) else { continue };
        if !seen.insert(cycle.iter().cloned().collect::<BTreeSet<_>>()) {
            continue;
        }
        let mut chain = file.clone();
        for (at, from) in cycle.iter().enumerate() {
            let to = cycle.get(at + 1).unwrap_or(file);
            chain += &format!("\n    names {} of {to}", edges[from][to]);
        }
        chains.push(chain);
    }
    chains
}

/// The files of the shortest cycle through a file, beginning with it.
fn shortest_cycle(edges: &Edges, start: &str) -> Option<Vec<String>> {
    let mut before: HashMap<&str, &str> = HashMap::new();
    let mut queue = std::collections::VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for next in edges.get(file).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                let mut cycle = vec![file.to_owned()];
                while cycle[cycle.len() - 1] != start {
                    cycle.push(before[cycle[cycle.len() - 1].as_str()].to_owned());
                }
                cycle.reverse();
                return Some(cycle);
            }
            if !before.contains_key(next.as_str()) {
                before.insert(next, file);
                queue.push_back(next);
            }
        }
    }
    None
}

/// The segments of a module's path: `["policy", "chain"]`; empty for the root.
type ModulePath = Vec<String>;

#[derive(Default)]
struct Module {
    file: String,
    /// Modules in other files that it declares.
    children: BTreeSet<String>,
    /// Items that it defines.
    items: BTreeSet<String>,
    /// Imported paths by their local name.
    imports: BTreeMap<String, Vec<String>>,
    /// The imports that it re-exports.
    exports: BTreeSet<String>,
    /// Paths in its code, including single names.
    paths: BTreeSet<Vec<String>>,
}

impl Module {
    /// Every path by which it names an item.
    fn names(&self) -> impl Iterator<Item = Vec<String>> {
        let is_used = |name: &String| self.paths.iter().any(|path| path[0] == *name);
        let imports =
            self.imports.iter().filter(move |(name, _)| !self.exports.contains(*name) || is_used(name));
        imports.map(|(_, path)| path.clone()).chain(self.paths.iter().cloned())
    }
}

enum Found {
    Module(ModulePath),
    /// In this file.
    Item(String),
}

/// Resolves a path in a module; `None` if it leads out of this crate.
fn resolve(
    modules: &BTreeMap<ModulePath, Module>,
    from: &[String],
    path: &[String],
    depth: usize,
) -> Option<Found> {
    if depth > 16 {
        return None;
    }
    let mut at = from.to_vec();
    for (index, name) in path.iter().enumerate() {
        let module = modules.get(&at)?;
        let is_last = index + 1 == path.len();
        let child = || module.children.contains(name).then(|| [&at[..], std::slice::from_ref(name)].concat());
        match name.as_str() {
            "crate" => at.clear(),
            "super" => drop(at.pop()),
            "self" => {}
            _ if !is_last && module.children.contains(name) => at = child()?,
            _ if module.items.contains(name) => return Some(Found::Item(module.file.clone())),
            _ => match module.imports.get(name).filter(|target| *target != path || index > 0) {
                Some(target) => match resolve(modules, &at, target, depth + 1)? {
                    Found::Module(found) => at = found,
                    item => return Some(item),
                },
                None => at = child()?,
            },
        }
    }
    Some(Found::Module(at))
}

/// All modules that are compiled without tests.
fn modules(sources: &Sources) -> BTreeMap<ModulePath, Module> {
    let mut modules = BTreeMap::new();
    let mut waiting = vec![(ModulePath::new(), "lib.rs".to_owned())];
    while let Some((path, file)) = waiting.pop() {
        let module = read(&file, &sources[&file]);
        let folder = path.join("/");
        for child in &module.children {
            let stem = if folder.is_empty() { child.clone() } else { format!("{folder}/{child}") };
            let names = [format!("{stem}.rs"), format!("{stem}/mod.rs")];
            let file = names.into_iter().find(|name| sources.contains_key(name));
            waiting.push((
                [&path[..], std::slice::from_ref(child)].concat(),
                file.expect("a module has its file"),
            ));
        }
        modules.insert(path, module);
    }
    modules
}

/// Reads one file.
fn read(file: &str, text: &str) -> Module {
    let tokens = without_tests(&tokens(text));
    let mut module = Module { file: file.to_owned(), ..Module::default() };
    let (mut at, mut depth) = (0, 0_usize);
    while at < tokens.len() {
        let token = tokens[at].as_str();
        let next = tokens.get(at + 1).map_or("", String::as_str);
        match token {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth = depth.saturating_sub(1),
            "use" if is_name(next) || next == "{" => {
                let end = at + tokens[at..].iter().position(|token| token == ";").unwrap_or(0);
                let is_export = at > 0 && matches!(tokens[at - 1].as_str(), "pub" | ")");
                for (name, path) in use_tree(&tokens[at + 1..end], &[]) {
                    assert!(name != "*", "{file}: a glob hides what is named: {path:?}");
                    // `Trait as _`
                    let name = if name == "_" { path.join("::") } else { name };
                    if is_export {
                        module.exports.insert(name.clone());
                    }
                    module.imports.insert(name, path);
                }
                at = end;
            }
            "mod" if depth == 0 && is_name(next) => {
                let is_file = tokens.get(at + 2).is_some_and(|token| token == ";");
                let list = if is_file { &mut module.children } else { &mut module.items };
                list.insert(next.to_owned());
                at += 1;
            }
            "struct" | "enum" | "union" | "trait" | "fn" | "const" | "static" | "type"
                if depth == 0 && is_name(next) && next != "fn" =>
            {
                module.items.insert(next.to_owned());
                at += 1;
            }
            name if depth == 0
                && is_name(name)
                && name != "macro_rules"
                && next == "!"
                && tokens.get(at + 2).is_some_and(|token| token == "{") =>
            {
                module.items.extend(given_to_macro(&tokens[at + 2..]));
            }
            name if is_name(name) && (at == 0 || !matches!(tokens[at - 1].as_str(), "." | "::")) => {
                let mut path = vec![name.to_owned()];
                while tokens.get(at + 1).is_some_and(|token| token == "::")
                    && tokens.get(at + 2).is_some_and(|token| is_name(token))
                {
                    path.push(tokens[at + 2].clone());
                    at += 2;
                }
                module.paths.insert(path);
            }
            _ => {}
        }
        at += 1;
    }
    // A single name is an import or an item of this file.
    let imports = &module.imports;
    module.paths.retain(|path| path.len() > 1 || imports.contains_key(&path[0]));
    module
}

/// The items that a macro call at the top level may define: the types that are named in its braces.
fn given_to_macro(tokens: &[String]) -> Vec<String> {
    let mut depth = 0;
    let inside = tokens.iter().take_while(|token| {
        depth += i32::from(matches!(token.as_str(), "{" | "(" | "["));
        depth -= i32::from(matches!(token.as_str(), "}" | ")" | "]"));
        depth > 0
    });
    inside.filter(|token| token.starts_with(char::is_uppercase)).cloned().collect()
}

/// The names that a `use` imports, each with its path.
fn use_tree(tokens: &[String], before: &[String]) -> Vec<(String, Vec<String>)> {
    let mut path = before.to_vec();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "::" => {}
            "{" => {
                let inside = &tokens[at + 1..tokens.len() - 1];
                return split(inside).into_iter().flat_map(|part| use_tree(part, &path)).collect();
            }
            "as" => return vec![(tokens[at + 1].clone(), path)],
            "self" if !path.is_empty() => {}
            name => path.push(name.to_owned()),
        }
        at += 1;
    }
    path.last().cloned().map(|name| (name, path)).into_iter().collect()
}

/// Splits at the commas outside of braces.
fn split(tokens: &[String]) -> Vec<&[String]> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => {
                parts.push(&tokens[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tokens[begin..]);
    parts.into_iter().filter(|part| !part.is_empty()).collect()
}

/// Removes each item that follows `#[cfg(test)]` or `#[cfg(any(test, ...))]`.
fn without_tests(tokens: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let end = attribute(tokens, at);
        let inside = &tokens[at..end];
        let is_of_tests = inside.get(2).is_some_and(|token| token == "cfg")
            && inside.iter().any(|token| token == "test")
            && !inside.iter().any(|token| token == "not");
        if !is_of_tests {
            let upto = end.max(at + 1);
            kept.extend_from_slice(&tokens[at..upto]);
            at = upto;
            continue;
        }
        at = end;
        let mut depth = 0;
        while at < tokens.len() {
            match tokens[at].as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 && matches!(tokens[at - 1].as_str(), ";" | "}") {
                break;
            }
        }
    }
    kept
}

/// The end of the attribute that begins at `at`; `at` itself if there is none.
fn attribute(tokens: &[String], at: usize) -> usize {
    if tokens[at] != "#" || tokens.get(at + 1).is_none_or(|token| token != "[") {
        return at;
    }
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at + 1) {
        depth += i32::from(token == "[") - i32::from(token == "]");
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Identifiers and punctuation, without comments and literals.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens: Vec<String> = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let next = chars.get(at + 1).copied().unwrap_or_default();
        match chars[at] {
            '/' if next == '/' => at = until(&chars, at, |c| c == '\n'),
            '/' if next == '*' => {
                let end = chars[at + 2..].windows(2).position(|pair| pair == ['*', '/']);
                at = end.map_or(chars.len(), |end| at + end + 4);
            }
            'r' if next == '"'
                || next == '#' && chars.get(at + 2).is_some_and(|c| matches!(c, '"' | '#')) =>
            {
                at = raw_string(&chars, at + 1);
            }
            '"' => {
                at += 1;
                while at < chars.len() && chars[at] != '"' {
                    at += 1 + usize::from(chars[at] == '\\');
                }
                at += 1;
            }
            '\'' if next == '\\' => at = until(&chars, at + 3, |c| c == '\'') + 1,
            '\'' if chars.get(at + 2) == Some(&'\'') => at += 3,
            ':' if next == ':' => {
                tokens.push("::".to_owned());
                at += 2;
            }
            c if c.is_alphanumeric() || c == '_' => {
                let end = until(&chars, at, |c| !c.is_alphanumeric() && c != '_');
                tokens.push(chars[at..end].iter().collect());
                at = end;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                at += 1;
            }
        }
    }
    tokens
}

/// The end of a raw string whose `#`s begin at `at`.
fn raw_string(chars: &[char], at: usize) -> usize {
    let begin = until(chars, at, |c| c == '"');
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', begin - at)).collect();
    let found = chars[begin + 1..].windows(end.len()).position(|window| window == end);
    found.map_or(chars.len(), |found| begin + 1 + found + end.len())
}

fn until(chars: &[char], at: usize, is_end: impl Fn(char) -> bool) -> usize {
    chars[at..].iter().position(|c| is_end(*c)).map_or(chars.len(), |found| at + found)
}
