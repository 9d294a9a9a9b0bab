//! Stages to nodes: matrix expansion, edges, topological order, selection.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::config::{self, Axis, InputRef, Instance, Pipeline, Span, StageConfig};

const LONGEST_IDENTITY: usize = 80;

/// One execution: a stage, or one combination of its matrix.
#[derive(Debug, Clone)]
pub struct Node {
    /// `stage`, or `stage[rank=8,lr=2e-4]`.
    pub name: String,
    pub stage: String,
    /// `rank=8,lr=2e-4`.
    pub label: Option<String>,
    pub params: BTreeMap<String, Value>,
    pub inputs: BTreeMap<String, Source>,
    /// Own and inherited repeats; empty without any. `Graph::repeat_identity` says how they are written.
    pub repeat: String,
    /// Indices of the nodes whose outputs this one takes.
    pub producers: BTreeSet<usize>,
}

/// Where a node's input comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Relative to the pipeline's folder.
    File(String),
    Output {
        node: usize,
        output: String,
    },
    /// Label -> node, in the order of the matrix.
    Instances {
        nodes: Vec<(String, usize)>,
        output: String,
    },
}

/// Nodes in topological order; ties in the order of the file.
#[derive(Debug, Clone)]
pub struct Graph {
    pub nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    #[error("the stages form a cycle: {}", path.join(" -> "))]
    Cycle { path: Vec<String>, span: Span },
    #[error("there is no instance `{wanted}` of `{stage}`")]
    NoInstance { stage: String, wanted: String, known: Vec<String>, span: Span },
    #[error("there is no stage `{wanted}`")]
    NoStage { wanted: String, known: Vec<String> },
}

/// Which nodes a command is about. Empty: all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub only: Vec<String>,
    pub from: Option<String>,
    pub until: Option<String>,
}

impl Graph {
    /// # Errors
    /// A cycle, with the stages on it, or an instance that no matrix makes.
    pub fn new(pipeline: &Pipeline) -> Result<Self, GraphError> {
        let order = stage_order(pipeline)?;
        let mut graph = Self { nodes: Vec::new() };
        let mut instances: BTreeMap<&str, Vec<(Option<String>, usize)>> = BTreeMap::new();
        for name in order {
            let stage = &pipeline.stages[name];
            for combination in combinations(&stage.matrix) {
                let node = graph.node(stage, &combination, &instances)?;
                let label = node.label.clone();
                graph.nodes.push(node);
                instances.entry(name).or_default().push((label, graph.nodes.len() - 1));
            }
        }
        Ok(graph)
    }

    /// Parameters as the stages have them now.
    pub fn take_params(&mut self, pipeline: &Pipeline) {
        for node in &mut self.nodes {
            let stage = pipeline.stages.get(&node.stage).filter(|stage| !stage.raw_params.is_empty());
            for (name, param) in stage.into_iter().flat_map(|stage| &stage.params) {
                node.params.insert(name.clone(), param.value.clone());
            }
        }
    }

    fn node(
        &self,
        stage: &StageConfig,
        combination: &[Setting<'_>],
        instances: &BTreeMap<&str, Vec<(Option<String>, usize)>>,
    ) -> Result<Node, GraphError> {
        let label = (!combination.is_empty()).then(|| {
            combination.iter().map(|(param, text, _)| format!("{param}={text}")).collect::<Vec<_>>().join(",")
        });
        let name = label.as_ref().map_or_else(|| stage.name.clone(), |l| format!("{}[{l}]", stage.name));
        let mut params: BTreeMap<String, Value> =
            stage.params.iter().map(|(k, v)| (k.clone(), v.value.clone())).collect();
        params.extend(combination.iter().map(|(param, _, value)| ((*param).to_owned(), (*value).clone())));
        let mut node = Node {
            name,
            stage: stage.name.clone(),
            label,
            params,
            inputs: BTreeMap::new(),
            repeat: String::new(),
            producers: BTreeSet::new(),
        };
        for (input, reference) in &stage.inputs {
            let source = source(&reference.value, &reference.span, instances)?;
            match &source {
                Source::File(_) => {}
                Source::Output { node: producer, .. } => drop(node.producers.insert(*producer)),
                Source::Instances { nodes, .. } => node.producers.extend(nodes.iter().map(|(_, i)| *i)),
            }
            node.inputs.insert(input.clone(), source);
        }
        node.repeat = self.repeat_identity(stage.repeat, &node.inputs);
        Ok(node)
    }

    /// Tells a repeat from every other: of which input's maker, of that one's inputs and so on it is a repeat, as in
    /// `samples:adapter:1`. Without any stage's name: those are not in a key. A long one is hashed.
    fn repeat_identity(&self, own: u64, inputs: &BTreeMap<String, Source>) -> String {
        let mut parts: Vec<String> = if own > 0 { vec![own.to_string()] } else { Vec::new() };
        for (name, source) in inputs {
            let producers: Vec<usize> = match source {
                Source::File(_) => continue,
                Source::Output { node, .. } => vec![*node],
                Source::Instances { nodes, .. } => nodes.iter().map(|(_, node)| *node).collect(),
            };
            let found: BTreeSet<&str> = producers.iter().map(|p| self.nodes[*p].repeat.as_str()).collect();
            parts.extend(found.iter().filter(|r| !r.is_empty()).map(|r| format!("{name}:{r}")));
        }
        let text = if parts.len() > 1 { format!("({})", parts.join(" ")) } else { parts.concat() };
        if text.len() > LONGEST_IDENTITY {
            blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
        } else {
            text
        }
    }

    /// The nodes that a stage's name or an instance's name stands for.
    ///
    /// # Errors
    /// The name is neither.
    pub fn find(&self, name: &str) -> Result<BTreeSet<usize>, GraphError> {
        let matches = |n: &Node| n.name == name || n.stage == name;
        let found: BTreeSet<usize> = (0..self.nodes.len()).filter(|i| matches(&self.nodes[*i])).collect();
        if found.is_empty() {
            let mut known: Vec<String> = self.nodes.iter().map(|n| n.name.clone()).collect();
            known.extend(self.nodes.iter().map(|n| n.stage.clone()));
            known.sort();
            known.dedup();
            return Err(GraphError::NoStage { wanted: name.to_owned(), known });
        }
        Ok(found)
    }

    /// # Errors
    /// A name that no node has.
    pub fn select(&self, selection: &Selection) -> Result<BTreeSet<usize>, GraphError> {
        let mut chosen: BTreeSet<usize> = (0..self.nodes.len()).collect();
        if !selection.only.is_empty() {
            chosen.clear();
            for name in &selection.only {
                chosen.extend(self.find(name)?);
            }
        }
        if let Some(name) = &selection.from {
            let downstream = self.downstream(self.find(name)?);
            chosen.retain(|i| downstream.contains(i));
        }
        if let Some(name) = &selection.until {
            let upstream = self.upstream(self.find(name)?);
            chosen.retain(|i| upstream.contains(i));
        }
        Ok(chosen)
    }

    /// `start` and everything that it needs.
    pub fn upstream(&self, start: BTreeSet<usize>) -> BTreeSet<usize> {
        let mut found = start;
        for i in (0..self.nodes.len()).rev() {
            if found.contains(&i) {
                found.extend(&self.nodes[i].producers);
            }
        }
        found
    }

    /// `start` and everything that needs it.
    pub fn downstream(&self, start: BTreeSet<usize>) -> BTreeSet<usize> {
        let mut found = start;
        for (i, node) in self.nodes.iter().enumerate() {
            if node.producers.iter().any(|p| found.contains(p)) {
                found.insert(i);
            }
        }
        found
    }
}

fn source(
    reference: &InputRef,
    span: &Span,
    instances: &BTreeMap<&str, Vec<(Option<String>, usize)>>,
) -> Result<Source, GraphError> {
    let output = match reference {
        InputRef::File(path) => return Ok(Source::File(path.clone())),
        InputRef::Output(output) => output,
    };
    let nodes = instances.get(output.stage.as_str()).map_or(&[][..], Vec::as_slice);
    let wanted = match &output.instance {
        Instance::All => {
            let nodes = nodes.iter().map(|(label, i)| (label.clone().unwrap_or_default(), *i)).collect();
            return Ok(Source::Instances { nodes, output: output.output.clone() });
        }
        Instance::Only => None,
        Instance::Named(label) => Some(label.clone()),
    };
    let found = nodes.iter().find(|(label, _)| *label == wanted).map(|(_, i)| *i);
    found.map(|node| Source::Output { node, output: output.output.clone() }).ok_or_else(|| {
        GraphError::NoInstance {
            stage: output.stage.clone(),
            wanted: wanted.unwrap_or_default(),
            known: nodes.iter().filter_map(|(label, _)| label.clone()).collect(),
            span: span.clone(),
        }
    })
}

/// Parameter, its value as written, its value.
type Setting<'a> = (&'a str, &'a str, &'a Value);

/// Every combination, the last axis varying fastest; one empty combination without a matrix.
fn combinations(matrix: &[Axis]) -> Vec<Vec<Setting<'_>>> {
    let mut found: Vec<Vec<Setting<'_>>> = vec![Vec::new()];
    for axis in matrix {
        let mut longer = Vec::new();
        for prefix in &found {
            for (text, value) in &axis.values {
                let mut combination = prefix.clone();
                combination.push((axis.param.as_str(), text.as_str(), value));
                longer.push(combination);
            }
        }
        found = longer;
    }
    found
}

/// Names of stages, producers first; among equals the first in the file first. Takes n log n steps.
fn stage_order(pipeline: &Pipeline) -> Result<Vec<&str>, GraphError> {
    let needs: BTreeMap<&str, BTreeSet<&str>> =
        pipeline.stages.iter().map(|(name, stage)| (name.as_str(), needs(stage))).collect();
    let mut consumers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut unmet: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, producers) in &needs {
        let known = producers.iter().filter(|p| pipeline.stages.contains_key(**p));
        unmet.insert(name, known.clone().count());
        for producer in known {
            consumers.entry(producer).or_default().push(name);
        }
    }
    let place = |name: &str| {
        let span = pipeline.stages.get(name).and_then(|s| s.span.as_ref());
        span.map_or(usize::MAX, |s| s.start)
    };
    let mut ready: BTreeSet<(usize, &str)> =
        unmet.iter().filter(|(_, n)| **n == 0).map(|(name, _)| (place(name), *name)).collect();
    let mut order: Vec<&str> = Vec::new();
    while let Some((_, next)) = ready.pop_first() {
        unmet.remove(next);
        order.push(next);
        for consumer in consumers.get(next).into_iter().flatten() {
            if let Some(left) = unmet.get_mut(consumer) {
                *left -= 1;
                if *left == 0 {
                    ready.insert((place(consumer), consumer));
                }
            }
        }
    }
    if unmet.is_empty() { Ok(order) } else { Err(cycle(pipeline, &needs, &unmet.into_keys().collect())) }
}

fn needs(stage: &StageConfig) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for input in stage.inputs.values() {
        if let InputRef::Output(output) = &input.value {
            found.insert(output.stage.as_str());
        }
    }
    found
}

/// Walks along unmet needs until a stage comes twice.
fn cycle(pipeline: &Pipeline, needs: &BTreeMap<&str, BTreeSet<&str>>, left: &BTreeSet<&str>) -> GraphError {
    let mut path: Vec<&str> = Vec::new();
    let mut at = left.iter().next().copied().unwrap_or_default();
    while !path.contains(&at) {
        path.push(at);
        at = needs[at].iter().copied().find(|n| left.contains(n)).unwrap_or_default();
    }
    let start = path.iter().position(|n| *n == at).unwrap_or(0);
    // From producer to consumer, as data flows, beginning with the first in the alphabet.
    let mut ring: Vec<&str> = path[start..].iter().rev().copied().collect();
    let first = ring.iter().enumerate().min_by_key(|(_, name)| **name).map_or(0, |(i, _)| i);
    ring.rotate_left(first);
    let producer = ring.last().copied().unwrap_or_default();
    let consumer = &pipeline.stages[ring[0]];
    let closing = |input: &&config::Located<InputRef>| matches!(&input.value, InputRef::Output(o) if o.stage == producer);
    let span = consumer.inputs.values().find(closing).map_or(consumer.span.clone(), |i| i.span.clone());
    let mut path: Vec<String> = ring.iter().map(|n| (*n).to_owned()).collect();
    path.push(ring[0].to_owned());
    GraphError::Cycle { path, span }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Source as Text, parse};

    fn pipeline(text: &str) -> Pipeline {
        let source = Text { path: "pipeline.toml".into(), text: format!("schema = 1\n{text}").into() };
        parse(source, "/".into(), None, &[]).unwrap()
    }

    fn stage(name: &str, inputs: &[String]) -> String {
        let inputs: Vec<String> =
            inputs.iter().enumerate().map(|(i, from)| format!("i{i} = \"{from}.o\"")).collect();
        format!("[stage.{name}]\nrun = [\"p\"]\noutputs = [\"o\"]\ninputs = {{ {} }}\n", inputs.join(", "))
    }

    proptest! {
        /// Any graph without a cycle, in any order of the file: producers come first, and selections are closed.
        #[test]
        fn producers_come_before_consumers(edges in prop::collection::vec((0usize..12, 0usize..12), 0..30), rotate in 0usize..12) {
            let mut needs: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); 12];
            for (a, b) in edges {
                if a != b {
                    needs[a.max(b)].insert(a.min(b));
                }
            }
            let name = |i: usize| format!("s{}", (i * 7 + 3) % 12);
            let mut stages: Vec<String> = (0..12)
                .map(|i| stage(&name(i), &needs[i].iter().map(|n| name(*n)).collect::<Vec<_>>()))
                .collect();
            stages.rotate_left(rotate);
            let graph = Graph::new(&pipeline(&stages.concat())).unwrap();
            prop_assert_eq!(graph.nodes.len(), 12);
            for (i, node) in graph.nodes.iter().enumerate() {
                prop_assert!(node.producers.iter().all(|p| *p < i));
                let up = graph.upstream(BTreeSet::from([i]));
                prop_assert!(up.iter().all(|u| graph.downstream(BTreeSet::from([*u])).contains(&i)));
            }
        }

        /// One more edge, from the last stage of a chain to its first: always a cycle, always named whole.
        #[test]
        fn every_ring_is_found(length in 1usize..8) {
            let ring: Vec<String> = (0..length).map(|i| stage(&format!("r{i}"), &[format!("r{}", (i + 1) % length)])).collect();
            match Graph::new(&pipeline(&ring.concat())) {
                Err(GraphError::Cycle { path, .. }) => prop_assert_eq!(path.len(), length + 1),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn a_repeat_and_what_comes_after_one_are_not_the_same() {
        let text = stage("a", &[])
            + &stage("a-again", &[])
            + "repeat = 1\n"
            + &stage("after", &["a-again".into()])
            + &stage("again", &["a".into()])
            + "repeat = 1\n"
            + &stage("further", &["after".into()]);
        let graph = Graph::new(&pipeline(&text)).unwrap();
        let of = |name: &str| graph.nodes[*graph.find(name).unwrap().first().unwrap()].repeat.as_str();
        assert_eq!(["a", "a-again", "after", "again", "further"].map(of), ["", "1", "i0:1", "1", "i0:i0:1"]);
    }

    #[test]
    fn repeats_are_inherited_and_matrices_multiply() {
        let text = stage("a", &[])
            + "repeat = 1\n"
            + &stage("b", &["a".into()])
            + "repeat = 2\nmatrix = { x = [1, 2], y = [\"p/q\", \"r\"] }\n";
        let graph = Graph::new(&pipeline(&text)).unwrap();
        let names: Vec<&str> = graph.nodes.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["a", "b[x=1,y=p_q]", "b[x=1,y=r]", "b[x=2,y=p_q]", "b[x=2,y=r]"]);
        assert_eq!(graph.nodes[1].repeat, "(2 i0:1)");
        assert_eq!(graph.nodes[1].params["y"], "p/q");
    }
}
