use crate::support::{Random, gpu, poisoned, random};
use kernels::cuda::ops::elementwise::add;
use kernels::cuda::{
    Dtype, Form, Graph, LANES, Lane, Matmul, Piece, Schedule, Tensor, WORKSPACE_BYTES, Work,
};
use std::sync::Arc;

/// Each of these pieces reads what the one before it wrote, or overwrites what the one before it read, on another lane.
#[test]
fn pieces_on_several_lanes_keep_their_order() {
    let shape = (2048, 4096);
    let mut rng = Random::new("schedule");
    let [x, y] = [(); 2].map(|()| random(&mut rng, shape, 0, Dtype::F32, 1.0));
    let [a, b, c] = [(); 3].map(|()| poisoned(shape, 0, Dtype::F32));
    let (x, y) = (x.tensor, y.tensor);
    let piece = |lane, waits: &[usize], work| Piece { work, lane, waits: waits.to_vec() };
    let sum = |from: [&_; 2], to| add(from[0], from[1], to).unwrap();
    let pieces = || {
        vec![
            piece(Lane::Main, &[], sum([&x, &y], &a)),
            piece(Lane::Beside(0), &[], sum([&a, &x], &b)),
            piece(Lane::Beside(1), &[1], sum([&b, &y], &c)),
            // Overwrites what the second piece read.
            piece(Lane::Main, &[1], sum([&x, &x], &a)),
            piece(Lane::Beside(0), &[2], sum([&a, &c], &b)),
            piece(Lane::Main, &[4], sum([&b, &y], &c)),
        ]
    };
    let alone: Vec<Work> = pieces().into_iter().map(|piece| piece.work).collect();
    Schedule::in_order(gpu(), alone).unwrap().run().unwrap();
    let expected = c.read_rows().unwrap();
    let schedule = Arc::new(Schedule::new(gpu(), pieces()).unwrap());
    let graph = Graph::capture(gpu(), &schedule).unwrap();
    for turn in 0..20 {
        [&a, &b, &c].into_iter().for_each(|t| t.memory().fill(0xFF).unwrap());
        if turn % 2 == 0 {
            graph.launch().unwrap()
        } else {
            schedule.run().unwrap()
        }
        assert!(c.read_rows().unwrap() == expected, "turn {turn}");
    }
}

/// Schedules share the marks that order their lanes: one after another, recorded or not, none waits for another's.
#[test]
fn schedules_take_turns_without_a_wait_between_them() {
    let shape = (1024, 4096);
    let mut rng = Random::new("turns");
    let x = random(&mut rng, shape, 0, Dtype::F32, 1.0).tensor;
    let piece = |lane, waits: &[usize], work| Piece { work, lane, waits: waits.to_vec() };
    let sum = |from: [&Tensor; 2], to: &Tensor| add(from[0], from[1], to).unwrap();
    let chain = |first: usize| {
        let [a, b, c] = [(); 3].map(|()| poisoned(shape, 0, Dtype::F32));
        let second = 1 - first;
        let pieces = vec![
            piece(Lane::Main, &[], sum([&x, &x], &a)),
            piece(Lane::Beside(first), &[], sum([&a, &x], &b)),
            piece(Lane::Beside(second), &[1], sum([&b, &a], &c)),
            piece(Lane::Main, &[1, 2], sum([&c, &b], &a)),
            piece(Lane::Beside(first), &[], sum([&a, &c], &b)),
            piece(Lane::Main, &[4], sum([&b, &x], &c)),
        ];
        (Arc::new(Schedule::new(gpu(), pieces).unwrap()), c)
    };
    let (one, other) = (chain(0), chain(1));
    one.0.run().unwrap();
    let expected = one.1.read_rows().unwrap();
    // Recorded while the other one runs.
    other.0.run().unwrap();
    let graphs = [&one.0, &other.0].map(|schedule| {
        let graph = Graph::capture(gpu(), schedule).unwrap();
        schedule.run().unwrap();
        graph
    });
    for turn in 0..20 {
        [&one.1, &other.1].into_iter().for_each(|t| t.memory().fill(0xFF).unwrap());
        if turn % 2 == 0 {
            graphs[0].launch().unwrap();
            other.0.run().unwrap();
        } else {
            one.0.run().unwrap();
            graphs[1].launch().unwrap();
            one.0.run().unwrap();
        }
        let same = [&one.1, &other.1].map(|t| t.read_rows().unwrap() == expected);
        assert_eq!(same, [true; 2], "turn {turn}");
    }
}

#[test]
fn schedules_that_can_t_be_kept_are_refused() {
    let mut rng = Random::new("schedules");
    let x = random(&mut rng, (8, 8), 0, Dtype::F32, 1.0).tensor;
    let out = poisoned((8, 8), 0, Dtype::F32);
    let piece =
        |lane, waits: &[usize]| Piece { work: add(&x, &x, &out).unwrap(), lane, waits: waits.to_vec() };
    let refused = |pieces| Schedule::new(gpu(), pieces).unwrap_err().to_string().contains("can't wait");
    assert!(refused(vec![piece(Lane::Beside(0), &[0])]), "waits for itself");
    assert!(refused(vec![piece(Lane::Main, &[]), piece(Lane::Main, &[0])]), "waits for the main lane");
    assert!(refused(vec![piece(Lane::Beside(LANES), &[])]), "no such lane");
    let workspace = gpu().alloc(WORKSPACE_BYTES, "a test").unwrap();
    let product = Matmul::new(&workspace, Form::Nn, (&x, &x, &out), false).unwrap();
    let beside = Piece { work: Work::from(product), lane: Lane::Beside(0), waits: Vec::new() };
    assert!(refused(vec![beside]), "a product beside");
}
