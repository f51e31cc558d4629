//! Values in nested tables of TOML, by their paths. Elements of lists have their number.

use toml::{Table, Value};

/// The paths of lists where the defaults have tables. serde would take their elements for the values of
/// the keys, in order.
pub(super) fn lists_for_tables(defaults: &Table, given: &Table) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (key, default) in defaults {
        match (default, given.get(key)) {
            (Value::Table(_), Some(Value::Array(_))) => found.push(vec![key.clone()]),
            (Value::Table(default), Some(Value::Table(inner))) => {
                let below = lists_for_tables(default, inner).into_iter();
                found.extend(below.map(|path| [vec![key.clone()], path].concat()));
            }
            _ => {}
        }
    }
    found
}

/// The paths of all values that match.
pub(super) fn leaves(table: &Table, wanted: impl Fn(&Value) -> bool + Copy) -> Vec<Vec<String>> {
    fn walk(path: &[String], value: &Value, wanted: &dyn Fn(&Value) -> bool, found: &mut Vec<Vec<String>>) {
        let below = |key: String| path.iter().cloned().chain([key]).collect::<Vec<_>>();
        match value {
            Value::Table(table) => {
                table.iter().for_each(|(key, value)| walk(&below(key.clone()), value, wanted, found))
            }
            Value::Array(array) => {
                array
                    .iter()
                    .enumerate()
                    .for_each(|(at, value)| walk(&below(at.to_string()), value, wanted, found));
            }
            value if wanted(value) => found.push(path.to_vec()),
            _ => {}
        }
    }
    let mut found = Vec::new();
    table.iter().for_each(|(key, value)| walk(std::slice::from_ref(key), value, &wanted, &mut found));
    found
}

/// Sets the value at this path. Makes the tables around it.
pub(super) fn set(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => drop(table.insert(key.clone(), value)),
        [key, rest @ ..] => {
            let inner = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

/// The value at this path.
pub(super) fn get<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(table.get(first)?, |value, key| match value {
        Value::Table(table) => table.get(key),
        Value::Array(array) => array.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Removes the value at this path, or the innermost array element or table around it that can
/// be removed.
pub(super) fn remove(table: &mut Table, path: &[String]) -> bool {
    let Some((key, rest)) = path.split_first() else { return false };
    match table.get_mut(key) {
        Some(Value::Table(inner)) if !rest.is_empty() => remove(inner, rest) || table.remove(key).is_some(),
        Some(Value::Array(array)) if !rest.is_empty() => {
            let index = rest[0].parse::<usize>().ok().filter(|index| *index < array.len());
            let Some(index) = index else { return table.remove(key).is_some() };
            let removed = array[index].as_table_mut().is_some_and(|inner| remove(inner, &rest[1..]));
            if !removed {
                array.remove(index);
            }
            true
        }
        Some(_) => table.remove(key).is_some(),
        None => false,
    }
}
