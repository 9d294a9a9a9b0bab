//! Instrumentation as insertions into the source text.
//!
//! Every change is text put before and after a range of bytes, so nested changes compose, the code between them stays as
//! it was written, and each inserted arm knows where it stands in the result.

use std::collections::BTreeSet;
use std::ops::Range;

/// What an error in some place of the rendered text blames: a mutant, or a whole edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Mutant(u32),
    /// Index of an edit: all of its mutants, or its probe.
    Edit(usize),
}

/// Text around `range` of the original.
#[derive(Debug, Clone)]
pub(crate) struct Edit {
    pub range: Range<usize>,
    pub kind: EditKind,
    /// What a probe counts.
    pub counts: Vec<Counted>,
    /// The other half of a probe that has two: they are dropped together.
    pub partner: Option<usize>,
}

#[derive(Debug, Clone)]
pub(crate) enum EditKind {
    /// A choice between the original expression and mutants: `(match at(S) { 3 => (..), _ => ORIGINAL })`.
    Choice { site: u32, arms: Vec<Arm> },
    /// Early returns at the head of a body: `match at(S) { 3 => return .., _ => {} }`. The range is empty.
    Returns { site: u32, arms: Vec<Arm> },
    /// A statement that one mutant leaves out: `if at(S) != 3 { ORIGINAL }`.
    Statement { site: u32, mutant: u32 },
    /// A match arm that one mutant leaves out: a guard after the pattern (an empty range).
    NewGuard { site: u32, mutant: u32 },
    /// A probe or a tick. Can be dropped where it does not compile.
    Around { before: String, after: String },
    /// Fixed text at one place that always compiles.
    Point { text: String },
}

/// A branch or a line, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counted {
    Branch(u32),
    Line(u32),
}

#[derive(Debug, Clone)]
pub(crate) struct Arm {
    pub mutant: u32,
    pub code: String,
}

impl Edit {
    pub(crate) fn new(range: Range<usize>, kind: EditKind) -> Self {
        Self { range, kind, counts: Vec::new(), partner: None }
    }

    pub(crate) fn is_probe(&self) -> bool {
        matches!(self.kind, EditKind::Around { .. })
    }

    pub(crate) fn mutants(&self) -> Vec<u32> {
        match &self.kind {
            EditKind::Choice { arms, .. } | EditKind::Returns { arms, .. } => {
                arms.iter().map(|arm| arm.mutant).collect()
            }
            EditKind::Statement { mutant, .. } | EditKind::NewGuard { mutant, .. } => {
                vec![*mutant]
            }
            EditKind::Around { .. } | EditKind::Point { .. } => Vec::new(),
        }
    }
}

/// What is left out of a rendering.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dropped {
    pub mutants: BTreeSet<u32>,
    /// Indexes of edits that are probes.
    pub probes: BTreeSet<usize>,
}

/// The instrumented text, and where its parts stand in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rendered {
    pub text: String,
    /// Byte ranges of `text`.
    pub parts: Vec<(Range<usize>, Part)>,
}

/// Calls in inserted text name this module; a rendering puts the real name in its place.
pub(crate) const MODULE: &str = "__testforge_mutants";

/// Puts the edits that are not dropped into `source`.
pub(crate) fn render(source: &str, edits: &[Edit], dropped: &Dropped) -> Rendered {
    let mut out = Rendered::default();
    let mut starts = vec![0; edits.len()];
    let mut copied = 0;
    for event in events(edits, dropped) {
        out.text.push_str(source.get(copied..event.offset).unwrap_or_default());
        copied = event.offset.max(copied);
        let edit = &edits[event.edit];
        if event.opens {
            starts[event.edit] = out.text.len();
            open(&mut out, &edit.kind, dropped);
        }
        if event.closes {
            out.text.push_str(&closing(&edit.kind));
            out.parts.push((starts[event.edit]..out.text.len(), Part::Edit(event.edit)));
        }
    }
    out.text.push_str(source.get(copied..).unwrap_or_default());
    out
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    offset: usize,
    /// Closings before points before openings at one place.
    phase: u8,
    /// Inner ranges close first and open last.
    nesting: usize,
    sequence: usize,
    edit: usize,
    opens: bool,
    closes: bool,
}

fn events(edits: &[Edit], dropped: &Dropped) -> Vec<Event> {
    let mut events = Vec::new();
    for (i, edit) in edits.iter().enumerate() {
        if is_dropped(i, edit, dropped) {
            continue;
        }
        let Range { start, end } = edit.range;
        if start == end {
            events.push(Event {
                offset: start,
                phase: 1,
                nesting: 0,
                sequence: i,
                edit: i,
                opens: true,
                closes: true,
            });
            continue;
        }
        let nesting = usize::MAX - end;
        events.push(Event {
            offset: start,
            phase: 2,
            nesting,
            sequence: i,
            edit: i,
            opens: true,
            closes: false,
        });
        let nesting = usize::MAX - start;
        let sequence = usize::MAX - i;
        events.push(Event { offset: end, phase: 0, nesting, sequence, edit: i, opens: false, closes: true });
    }
    events.sort_unstable();
    events
}

pub(crate) fn is_dropped(i: usize, edit: &Edit, dropped: &Dropped) -> bool {
    let mutants = edit.mutants();
    let all_gone = !mutants.is_empty() && mutants.iter().all(|id| dropped.mutants.contains(id));
    all_gone
        || dropped.probes.contains(&i)
        || edit.partner.is_some_and(|partner| dropped.probes.contains(&partner))
}

fn open(out: &mut Rendered, kind: &EditKind, dropped: &Dropped) {
    match kind {
        EditKind::Choice { site, arms } => {
            out.text.push_str(&format!("(match crate::{MODULE}::at({site}) {{ "));
            push_arms(out, arms, dropped, "(", "), ");
            out.text.push_str("_ => ");
        }
        EditKind::Returns { site, arms } => {
            out.text.push_str(&format!(" match crate::{MODULE}::at({site}) {{ "));
            push_arms(out, arms, dropped, "return ", ", ");
            out.text.push_str("_ => {} } ");
        }
        EditKind::Statement { site, mutant } => {
            out.text.push_str(&format!("if crate::{MODULE}::at({site}) != {mutant} {{ "));
        }
        EditKind::NewGuard { site, mutant } => {
            out.text.push_str(&format!(" if crate::{MODULE}::at({site}) != {mutant}"));
        }
        EditKind::Around { before, .. } => out.text.push_str(before),
        EditKind::Point { text } => out.text.push_str(text),
    }
}

fn push_arms(out: &mut Rendered, arms: &[Arm], dropped: &Dropped, before: &str, after: &str) {
    for arm in arms.iter().filter(|arm| !dropped.mutants.contains(&arm.mutant)) {
        let start = out.text.len();
        out.text.push_str(&format!("{} => {before}{}{after}", arm.mutant, arm.code));
        out.parts.push((start..out.text.len(), Part::Mutant(arm.mutant)));
    }
}

fn closing(kind: &EditKind) -> String {
    match kind {
        EditKind::Choice { .. } => " })".to_owned(),
        EditKind::Statement { .. } => " }".to_owned(),
        EditKind::Around { after, .. } => after.clone(),
        EditKind::Returns { .. } | EditKind::NewGuard { .. } | EditKind::Point { .. } => String::new(),
    }
}

#[cfg(test)]
mod test {
    use super::{Arm, Dropped, Edit, EditKind, Part, render};

    fn choice(range: std::ops::Range<usize>, site: u32, mutant: u32, code: &str) -> Edit {
        Edit::new(range, EditKind::Choice { site, arms: vec![Arm { mutant, code: code.into() }] })
    }

    #[test]
    fn nested_choices_nest_in_the_default_arm_alone() {
        let edits = [choice(0..9, 0, 1, "(a) - (b * c)"), choice(4..9, 1, 2, "(b) / (c)")];
        let out = render("a + b * c;", &edits, &Dropped::default());
        let at = "crate::__testforge_mutants::at";
        assert_eq!(
            out.text,
            format!(
                "(match {at}(0) {{ 1 => ((a) - (b * c)), _ => a + (match {at}(1) {{ 2 => ((b) / (c)), _ => b * c }}) }});"
            )
        );
        let blamed = out.parts.iter().find(|(_, part)| *part == Part::Mutant(2)).unwrap();
        assert_eq!(&out.text[blamed.0.clone()], "2 => ((b) / (c)), ");
    }

    #[test]
    fn what_is_dropped_leaves_no_trace() {
        let edits = [
            choice(0..5, 0, 1, "x"),
            Edit::new(0..0, EditKind::Around { before: "p();".into(), after: String::new() }),
        ];
        let dropped = Dropped { mutants: [1].into(), probes: [1].into() };
        assert_eq!(render("a + b", &edits, &dropped).text, "a + b");
    }

    #[test]
    fn points_stand_before_what_starts_there_and_closings_before_points() {
        let around = |range, before: &str, after: &str| {
            Edit::new(range, EditKind::Around { before: before.into(), after: after.into() })
        };
        let edits = [
            around(0..4, "<", ">"),
            around(2..4, "[", "]"),
            Edit::new(2..2, EditKind::Point { text: "|".into() }),
        ];
        assert_eq!(render("abcd", &edits, &Dropped::default()).text, "<ab|[cd]>");
    }
}
