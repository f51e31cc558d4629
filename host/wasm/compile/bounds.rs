//! Limits on what is compiled at all, counted on the bytes before anything is done with them.
//!
//! A small file can cause a lot of work: components that instantiate each other, so that each level
//! doubles the cost of the one below; functions whose variables times branches exceed a compiler's
//! tables; tables and segments that declare a huge size. Counting is linear in the file and takes 20
//! ms for the largest plugin of a supported language. Each limit is several times what such plugins
//! contain, as noted next to it: only generated files exceed one. Files within the limits are bounded
//! by the limits of the compiling process.
//!
//! Errors are the second half of a sentence that begins with the plugin's name and path.

use wasmparser::{
    BinaryReaderError, ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind,
    ComponentTypeRef, CompositeInnerType, FunctionBody, Operator, Parser, Payload,
};

/// The file, in bytes. Python: 18 MB.
pub(crate) const SIZE: u64 = 64 * 1024 * 1024;
/// Nesting depth of modules and components. All tools: 2; compositions of components: a few more.
const NESTING: u64 = 16;
/// Steps to instantiate everything, counting each component as often as it is instantiated. Python:
/// 1,639.
const STEPS: u64 = 100_000;
/// Python: 14.
const MODULES: u64 = 500;
/// Python: 13,368.
const FUNCTIONS: u64 = 500_000;
/// All languages: 2.
const TABLES: u64 = 100;
/// The initial size of all tables together. JavaScript: 7,725.
const TABLE_ELEMENTS: u64 = 10_000_000;
/// All languages: 1.
const MEMORIES: u64 = 100;
/// Data segments and element segments. Go: 37,571.
const SEGMENTS: u64 = 400_000;
/// Variables of a function, including parameters, times its branches. JavaScript: less than 10
/// million.
const VARIABLES_TIMES_BRANCHES: u64 = 64_000_000;

/// The counts of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ModuleSize {
    nesting: u64,
    steps: u64,
    modules: u64,
    functions: u64,
    tables: u64,
    table_elements: u64,
    memories: u64,
    segments: u64,
    variables_times_branches: u64,
}

/// Whether a component or a module is small enough to be compiled.
///
/// # Errors
/// Which limit it exceeds, and by how much; or that it is not valid.
pub(crate) fn check(bytes: &[u8]) -> Result<(), BoundsError> {
    if bytes.len() as u64 > SIZE {
        return Err(BoundsError::FileSize(bytes.len()));
    }
    let mut walk = ModuleWalk::default();
    for payload in Parser::new(0).parse_all(bytes) {
        walk.visit(payload?)?;
        // Stops reading at the first exceeded limit.
        walk.contents.check()?;
    }
    Ok(())
}

impl ModuleSize {
    fn check(&self) -> Result<(), BoundsError> {
        let all = [
            (self.nesting, NESTING, "levels of nested components"),
            (self.steps, STEPS, "steps to instantiate its components"),
            (self.modules, MODULES, "modules"),
            (self.functions, FUNCTIONS, "functions"),
            (self.tables, TABLES, "tables"),
            (self.table_elements, TABLE_ELEMENTS, "elements in its tables"),
            (self.memories, MEMORIES, "memories"),
            (self.segments, SEGMENTS, "segments"),
            (
                self.variables_times_branches,
                VARIABLES_TIMES_BRANCHES,
                "variables times branches in one function",
            ),
        ];
        let over = all.into_iter().find(|(found, most, _)| found > most);
        over.map_or(Ok(()), |(found, most, what)| Err(BoundsError::Content { found, most, what }))
    }
}

/// A module or component that is being read.
#[derive(Debug, Default)]
struct ModuleFrame {
    is_component: bool,
    /// The cost of instantiating it once.
    steps: u64,
    /// The same for each component that it can name.
    components: Vec<u64>,
    /// The number of parameters of each function type of a module.
    types: Vec<u64>,
    /// The type of each function of a module.
    functions: Vec<u32>,
    /// The number of function bodies that were read.
    bodies: usize,
}

/// Why a file is not compiled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BoundsError {
    #[error("is not valid WebAssembly: {0}; is the file complete?")]
    Invalid(#[from] BinaryReaderError),
    #[error("is too large to compile: it has {0} bytes; the limit is {SIZE}")]
    FileSize(usize),
    #[error("is too large to compile: it has {found} {what} or more; the limit is {most}")]
    Content { found: u64, most: u64, what: &'static str },
    #[error("is not valid WebAssembly: it names a component that does not exist")]
    UnknownComponent,
    /// The cost of an imported component is unknown.
    #[error(
        "passes components to components, which is not supported; compose them into one, for example with `wac plug`"
    )]
    ImportedComponent,
}

#[derive(Debug, Default)]
struct ModuleWalk {
    frames: Vec<ModuleFrame>,
    contents: ModuleSize,
}

impl ModuleWalk {
    fn visit(&mut self, payload: Payload<'_>) -> Result<(), BoundsError> {
        let Self { frames, contents } = self;
        if let Payload::Version { encoding, .. } = payload {
            let is_component = encoding == wasmparser::Encoding::Component;
            contents.modules += u64::from(!is_component);
            frames.push(ModuleFrame { is_component, ..ModuleFrame::default() });
            contents.nesting = contents.nesting.max(frames.len() as u64);
            return Ok(());
        }
        let Some((frame, above)) = frames.split_last_mut() else { return Ok(()) };
        match payload {
            Payload::End(_) => {
                let done = frames.pop().unwrap_or_default();
                contents.steps = contents.steps.max(done.steps);
                if let Some(parent) = frames.last_mut()
                    && done.is_component
                {
                    parent.components.push(done.steps);
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section {
                    frame.add_instance(&instance?)?;
                }
                contents.steps = contents.steps.max(frame.steps);
            }
            Payload::InstanceSection(section) => frame.add_steps(section.count()),
            Payload::ComponentCanonicalSection(section) => frame.add_steps(section.count()),
            Payload::ComponentAliasSection(section) => {
                frame.add_steps(section.count());
                for alias in section {
                    frame.add_alias(&alias?, above)?;
                }
            }
            Payload::ComponentImportSection(section) => {
                frame.add_steps(section.count());
                for import in section {
                    if matches!(import?.ty, ComponentTypeRef::Component(_)) {
                        return Err(BoundsError::ImportedComponent);
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                frame.add_steps(section.count());
                for export in section {
                    let export = export?;
                    if export.kind == ComponentExternalKind::Component {
                        let same = frame.component(export.index)?;
                        frame.components.push(same);
                    }
                }
            }
            module => frame.add_section(contents, module)?,
        }
        Ok(())
    }
}

impl ModuleFrame {
    fn add_steps(&mut self, steps: u32) {
        self.steps = self.steps.saturating_add(u64::from(steps));
    }

    fn add_instance(&mut self, instance: &ComponentInstance<'_>) -> Result<(), BoundsError> {
        let steps = match instance {
            ComponentInstance::Instantiate { component_index, .. } => self.component(*component_index)?,
            ComponentInstance::FromExports(_) => 0,
        };
        self.steps = self.steps.saturating_add(1).saturating_add(steps);
        Ok(())
    }

    fn component(&self, index: u32) -> Result<u64, BoundsError> {
        self.components.get(index as usize).copied().ok_or(BoundsError::UnknownComponent)
    }

    fn add_alias(&mut self, alias: &ComponentAlias<'_>, above: &[Self]) -> Result<(), BoundsError> {
        match alias {
            ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => {
                Err(BoundsError::ImportedComponent)
            }
            ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
                let outer = match (*count as usize).checked_sub(1) {
                    None => self.component(*index)?,
                    Some(up) => {
                        above.iter().rev().nth(up).ok_or(BoundsError::ImportedComponent)?.component(*index)?
                    }
                };
                self.components.push(outer);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Reads a section of a module.
    fn add_section(&mut self, contents: &mut ModuleSize, payload: Payload<'_>) -> Result<(), BoundsError> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section {
                    for one in group?.types() {
                        self.types.push(match &one.composite_type.inner {
                            CompositeInnerType::Func(function) => function.params().len() as u64,
                            _ => 0,
                        });
                    }
                }
            }
            Payload::FunctionSection(section) => {
                contents.functions += u64::from(section.count());
                if contents.functions <= FUNCTIONS {
                    self.functions = section.into_iter().collect::<Result<_, _>>()?;
                }
            }
            Payload::TableSection(section) => {
                contents.tables += u64::from(section.count());
                for table in section {
                    contents.table_elements = contents.table_elements.saturating_add(table?.ty.initial);
                }
            }
            Payload::MemorySection(section) => contents.memories += u64::from(section.count()),
            Payload::ElementSection(section) => contents.segments += u64::from(section.count()),
            Payload::DataSection(section) => contents.segments += u64::from(section.count()),
            Payload::CodeSectionEntry(body) => {
                let parameters = self.functions.get(self.bodies).and_then(|ty| self.types.get(*ty as usize));
                self.bodies += 1;
                let product = variables_times_branches(&body, parameters.copied().unwrap_or_default())?;
                contents.variables_times_branches = contents.variables_times_branches.max(product);
            }
            _ => {}
        }
        Ok(())
    }
}

/// An upper bound: functions that cannot have many branches are not read.
fn variables_times_branches(body: &FunctionBody<'_>, parameters: u64) -> Result<u64, BinaryReaderError> {
    let mut variables = parameters;
    for local in body.get_locals_reader()? {
        variables = variables.saturating_add(u64::from(local?.0));
    }
    // A branch takes at least one byte, and its end another one.
    let at_most = variables.saturating_mul(body.range().len() as u64);
    if at_most <= VARIABLES_TIMES_BRANCHES {
        return Ok(at_most);
    }
    let mut branches = 0;
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        branches += match operators.read()? {
            Operator::Block { .. }
            | Operator::Loop { .. }
            | Operator::If { .. }
            | Operator::Else
            | Operator::TryTable { .. }
            | Operator::BrIf { .. }
            | Operator::BrOnNull { .. }
            | Operator::BrOnNonNull { .. }
            | Operator::BrOnCast { .. }
            | Operator::BrOnCastFail { .. } => 1,
            Operator::BrTable { targets } => 1 + u64::from(targets.len()),
            _ => 0,
        };
    }
    Ok(variables.saturating_mul(branches))
}

#[cfg(test)]
mod tests;
