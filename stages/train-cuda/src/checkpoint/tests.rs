//! States that are whole, damaged, good and not.

use super::state::Best;
use super::*;
use model::adapter::{Adapter, LoraConfig};
use record::training::{StepRecord, TokensFrom, ValidationRecord};

pub(super) fn history() -> History {
    let step = |step, loss| StepRecord {
        step,
        epoch: 1,
        loss,
        grad_norm: 0.1 + 0.2,
        lr: 1e-4,
        label_tokens: 7,
        tokens: 9,
    };
    let validation = |step, loss| ValidationRecord { step, epoch: 1, loss, label_tokens: 5 };
    History {
        steps: vec![step(1, 1.0 / 3.0), step(2, f64::MIN_POSITIVE)],
        validations: vec![validation(0, 0.5), validation(1, 2.0), validation(2, 2.0)],
        kept: vec![],
        gpu: Some("a GPU".into()),
        tokens_at_a_time: vec![TokensFrom { after_step: 0, tokens: 4096 }],
        ran_out_bytes: Some(7),
        wall_s: 1.5,
        was_interrupted: true,
    }
}

pub(super) fn state() -> TrainState {
    let table = BTreeMap::from([("w".to_owned(), engine::Range { start: 0, len: 3 })]);
    TrainState { step: 2, master: vec![1.0, -0.0, 1e-40], m: vec![0.5; 3], v: vec![0.25; 3], table }
}

fn weights() -> Trained {
    let config = model::init::architecture("tiny").unwrap();
    Trained::Adapter(Adapter::init(&config, &LoraConfig { r: 2, ..LoraConfig::default() }, 1))
}

/// With the weights that [`history`] names.
fn store(dir: &Path) -> Store {
    store_of(dir, "f")
}

pub(super) fn store_of(dir: &Path, fingerprint: &str) -> Store {
    let mut store = Store::new(dir, fingerprint.into());
    store.save_weights(&store.best_dir(1), &weights()).unwrap();
    store
}

fn loaded(dir: &Path) -> Loaded {
    match Store::new(dir, "f".into()).load().unwrap() {
        Found::State(loaded) => *loaded,
        other => panic!("{other:?}"),
    }
}

fn useless(dir: &Path, fingerprint: &str) -> String {
    match Store::new(dir, fingerprint.into()).load().unwrap() {
        Found::Useless(why) => why,
        other => panic!("{other:?}"),
    }
}

/// The same run, `n` steps further.
pub(super) fn later(n: u64) -> (History, TrainState) {
    let (mut history, mut state) = (history(), state());
    for step in 3..3 + n {
        history.steps.push(StepRecord { step, ..history.steps[0].clone() });
    }
    state.step += n;
    state.master[0] += n as f32;
    (history, state)
}

#[test]
fn a_state_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path()).save(&history(), state()).unwrap();
    let found = loaded(dir.path());
    assert_eq!((found.history, &found.state, found.passed_over), (history(), &state(), None));
    assert_eq!(found.state.master[1].to_bits(), (-0.0f32).to_bits());
}

#[test]
fn that_memory_ran_out_can_be_noted_in_a_state_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.note_ran_out(9).unwrap();
    assert!(matches!(Store::new(dir.path(), "f".into()).load().unwrap(), Found::Nothing), "no state");
    store.save(&history(), state()).unwrap();
    store.prove().unwrap();
    let (history_5, state_5) = later(3);
    for (history, state) in [(history(), state()), (history_5, state_5)] {
        store.save(&history, state.clone()).unwrap();
        store.note_ran_out(9).unwrap();
        let found = loaded(dir.path());
        assert_eq!(found.history, History { ran_out_bytes: Some(9), ..history });
        assert_eq!(found.state, state);
    }
    assert_eq!(store.good_step(), Some(2), "what is good stays");
}

#[test]
fn a_state_takes_the_place_of_a_good_one_only_when_it_is_good_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    assert_eq!((store.good_step(), store.newest_step()), (None, None));
    store.save(&history(), state()).unwrap();
    assert_eq!((store.good_step(), store.newest_step()), (None, Some(2)));
    store.prove().unwrap();
    assert_eq!((store.good_step(), store.newest_step()), (Some(2), Some(2)));
    let (history_5, state_5) = later(3);
    store.save(&history_5, state_5.clone()).unwrap();
    assert_eq!((store.good_step(), store.newest_step()), (Some(2), Some(5)));
    // Killed here, a run goes on from the newest, and still knows the good one.
    let mut again = Store::new(dir.path(), "f".into());
    let Found::State(found) = again.load().unwrap() else { panic!("no state") };
    assert_eq!((found.state, again.good_step()), (state_5, Some(2)));
    again.reject().unwrap();
    assert_eq!((again.good_step(), again.newest_step()), (Some(2), Some(2)));
    assert_eq!(loaded(dir.path()).state, state());
    again.reject().unwrap();
    assert_eq!(loaded(dir.path()).state, state(), "what is good is not rejected");
}

#[test]
fn without_a_good_state_a_rejected_one_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.save(&history(), state()).unwrap();
    store.reject().unwrap();
    assert!(matches!(store.load().unwrap(), Found::Nothing));
    assert_eq!(files(dir.path()).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn weights_of_the_good_state_outlive_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.save(&history(), state()).unwrap();
    store.prove().unwrap();
    let (mut better, state_5) = later(3);
    better.validations.push(ValidationRecord { step: 5, epoch: 1, loss: 1.0, label_tokens: 5 });
    store.save_weights(&store.best_dir(5), &weights()).unwrap();
    store.save(&better, state_5).unwrap();
    let left = |name: &str| dir.path().join(name).exists();
    assert!(left("best-1") && left("best-5"));
    let mut other = Store::new(dir.path(), "f".into());
    other.load().unwrap();
    other.prove().unwrap();
    assert!(!left("best-1") && left("best-5"));
    assert_eq!(loaded(dir.path()).history, better);
}

#[test]
fn another_number_of_tokens_is_remembered_with_the_step_that_it_began_after() {
    let mut history = history();
    let from = |after_step, tokens| TokensFrom { after_step, tokens };
    assert!(history.goes_on_with(Some("a GPU".into()), Some(4096)));
    assert!(!history.goes_on_with(Some("another".into()), Some(4096)));
    assert_eq!(history.tokens_at_a_time, [from(0, 4096)]);
    assert!(!history.goes_on_with(Some("another".into()), Some(1024)));
    assert!(!history.goes_on_with(Some("another".into()), Some(512)), "again before any step");
    assert_eq!(history.tokens_at_a_time, [from(0, 4096), from(2, 512)]);
    let mut fresh = History::default();
    fresh.goes_on_with(None, None);
    assert_eq!(fresh, History::default());
    fresh.goes_on_with(Some("a GPU".into()), Some(64));
    assert_eq!(fresh.tokens_at_a_time, [from(0, 64)]);
}

#[test]
fn best_is_the_lowest_loss_after_training_began() {
    assert_eq!(history().best(), Some(Best { step: 1, loss: 2.0 }));
    assert_eq!(History::default().best(), None);
}

#[test]
fn other_parameters_and_damage_are_told_apart_from_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Store::new(dir.path(), "f".into()).load().unwrap(), Found::Nothing));
    store(dir.path()).save(&history(), state()).unwrap();
    assert!(useless(dir.path(), "g").contains("other parameters"));
    let path = dir.path().join(NEWEST_FILE);
    let whole = fs::read(&path).unwrap();
    for n in [0, 1, 7, 8, 100, whole.len() - 1] {
        fs::write(&path, &whole[..n]).unwrap();
        assert!(useless(dir.path(), "f").contains("damaged"), "cut to {n} bytes");
    }
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&path, flipped).unwrap();
    assert!(useless(dir.path(), "f").contains("hash"));
    fs::write(&path, &whole).unwrap();
    let weights = dir.path().join("best-1").join(model::adapter::FILE);
    let tensors = fs::read(&weights).unwrap();
    fs::write(&weights, &tensors[..tensors.len() / 2]).unwrap();
    assert!(useless(dir.path(), "f").contains("adapter_model.safetensors is damaged"));
    fs::remove_file(&weights).unwrap();
    assert!(useless(dir.path(), "f").contains("adapter_model.safetensors is damaged"));
    fs::remove_dir_all(dir.path().join("best-1")).unwrap();
    assert!(useless(dir.path(), "f").contains("gone"));
}

/// Whatever byte of it is not what it was: the run's history as well as the slabs.
#[test]
fn one_bit_makes_no_other_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.save(&history(), state()).unwrap();
    let path = dir.path().join(NEWEST_FILE);
    let whole = fs::read(&path).unwrap();
    let mut refused = 0;
    for i in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[i] ^= 1;
        let Ok((stored, found)) = decode(&bytes) else {
            refused += 1;
            continue;
        };
        assert_eq!((stored.history(), found), (history(), state()), "bit of byte {i} of {}", whole.len());
    }
    // Only spaces at the end of the header mean nothing.
    assert!(refused + 8 >= whole.len(), "{refused} of {}", whole.len());
}

#[test]
fn a_damaged_newest_state_gives_way_to_the_good_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.save(&history(), state()).unwrap();
    store.prove().unwrap();
    let (history_5, state_5) = later(3);
    store.save(&history_5, state_5.clone()).unwrap();
    let path = dir.path().join(NEWEST_FILE);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let found = loaded(dir.path());
    assert_eq!(found.state, state());
    assert!(found.passed_over.is_some_and(|why| why.contains("damaged")));
    assert!(!path.exists(), "a damaged state stays");
}

#[test]
fn saving_deletes_the_weights_that_are_named_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    for name in ["best-9", "step-3", "notes", "step-x"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    store.save(&history(), state()).unwrap();
    let left = |name: &str| dir.path().join(name).exists();
    assert!(left("best-1") && left("notes") && left("step-x") && !left("best-9") && !left("step-3"));
}

#[test]
fn a_state_that_is_being_written_is_none_yet_and_what_it_names_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.save(&history(), state()).unwrap();
    let (mut better, state_5) = later(3);
    better.validations.push(ValidationRecord { step: 5, epoch: 1, loss: 1.0, label_tokens: 5 });
    store.save_weights(&store.best_dir(5), &weights()).unwrap();
    store.start_saving(&better, state_5.clone()).unwrap();
    assert_eq!(store.newest_step(), Some(2));
    let there = header(&dir.path().join(NEWEST_FILE)).unwrap();
    assert_eq!(there.history(), history());
    // A loss comes out well: both states are good, the later one once it is there.
    store.prove().unwrap();
    assert_eq!((store.good_step(), store.newest_step()), (Some(2), Some(2)));
    assert!(dir.path().join("best-5").exists());
    store.settle().unwrap();
    assert_eq!((store.good_step(), store.newest_step()), (Some(5), Some(5)));
    assert!(!dir.path().join("best-1").exists() && !dir.path().join(NEWEST_FILE).exists());
    assert_eq!(loaded(dir.path()).state, state_5);
    store.settle().unwrap();
}

/// Whatever states come and go before the one that names them.
#[test]
fn weights_wait_for_the_state_that_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.start_saving(&history(), state()).unwrap();
    store.save_weights(&store.best_dir(5), &weights()).unwrap();
    store.prove().unwrap();
    store.settle().unwrap();
    let (mut better, state_5) = later(3);
    better.validations.push(ValidationRecord { step: 5, epoch: 1, loss: 1.0, label_tokens: 5 });
    store.start_saving(&better, state_5.clone()).unwrap();
    store.settle().unwrap();
    assert_eq!(loaded(dir.path()).state, state_5);
    let (mut best, state_9) = later(7);
    best.validations.push(ValidationRecord { step: 9, epoch: 1, loss: 0.5, label_tokens: 5 });
    store.save_weights(&store.best_dir(9), &weights()).unwrap();
    store.save(&best, state_9).unwrap();
    store.prove().unwrap();
    assert!(!dir.path().join("best-5").exists() && dir.path().join("best-9").exists());
}

#[test]
fn a_state_that_is_being_written_can_be_rejected_and_ends_with_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.save(&history(), state()).unwrap();
    store.prove().unwrap();
    let (history_5, state_5) = later(3);
    store.start_saving(&history_5, state_5.clone()).unwrap();
    store.reject().unwrap();
    assert_eq!((store.good_step(), store.newest_step()), (Some(2), Some(2)));
    assert_eq!(loaded(dir.path()).state, state());
    // One that was shown to be good is none to reject.
    store.start_saving(&history_5, state_5.clone()).unwrap();
    store.prove().unwrap();
    store.reject().unwrap();
    assert_eq!((store.good_step(), loaded(dir.path()).state), (Some(5), state_5));
    let (history_9, state_9) = later(7);
    store.start_saving(&history_9, state_9.clone()).unwrap();
    drop(store);
    assert_eq!(loaded(dir.path()).state, state_9);
}

#[test]
fn a_state_that_can_t_be_written_leaves_the_one_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.save(&history(), state()).unwrap();
    let fail = |store: &mut Store| {
        let (history_5, state_5) = later(3);
        store.start_saving(&history_5, state_5).unwrap();
        // The thread may have ended already: what it wrote is taken away from it.
        while fs::remove_dir_all(dir.path().join(NEWEST_PARTIAL)).is_err() {}
    };
    fail(&mut store);
    store.prove().unwrap();
    store.settle().unwrap_err();
    assert_eq!(store.good_step(), Some(2));
    assert_eq!(loaded(dir.path()).state, state());
    // There is nothing to reject then, and what is good is not left for the user to delete.
    fail(&mut store);
    store.reject().unwrap();
    assert_eq!((store.good_step(), loaded(dir.path()).state), (Some(2), state()));
    let (history_9, state_9) = later(7);
    store.save(&history_9, state_9.clone()).unwrap();
    assert_eq!(loaded(dir.path()).state, state_9);
}

#[test]
fn names_of_the_checkpoint_folder_are_known() {
    let run = format!("run-{}", "0123456789abcdef");
    for name in ["best-3", "step-10", &run, NEWEST_FILE, GOOD_FILE, "newest.partial", "weights.partial"] {
        assert!(is_ours(name), "{name}");
    }
    for name in [
        "best-",
        "best-x",
        "run-1",
        "run-0123456789abcdeg",
        "weights",
        "state.safetensors.partial",
        "model",
        "",
    ] {
        assert!(!is_ours(name), "{name}");
    }
}

#[test]
fn what_a_killed_process_was_writing_goes_with_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path()).save(&history(), state()).unwrap();
    for folder in [NEWEST_PARTIAL, WEIGHTS_PARTIAL] {
        fs::create_dir(dir.path().join(folder)).unwrap();
        fs::write(dir.path().join(folder).join(".tmpabc"), b"half").unwrap();
    }
    assert_eq!(loaded(dir.path()).state, state());
    let mut names: Vec<String> = files(dir.path()).unwrap().iter().map(|path| name_of(path)).collect();
    names.sort();
    assert_eq!(names, ["best-1", NEWEST_FILE]);
}

/// A bad state that is deleted is gone, whatever else goes wrong; one that was shown to be good is none to delete.
#[test]
fn what_can_t_be_tidied_up_makes_no_state_bad() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.save(&history(), state()).unwrap();
    store.prove().unwrap();
    let (history_5, state_5) = later(3);
    // Nothing in the folder can be listed or flushed once it has another name.
    store.save(&history_5, state_5.clone()).unwrap();
    let elsewhere = dir.path().with_extension("moved");
    fs::rename(dir.path(), &elsewhere).unwrap();
    store.reject().unwrap();
    assert_eq!((store.good_step(), store.newest_step()), (Some(2), Some(2)));
    fs::rename(&elsewhere, dir.path()).unwrap();
    let mut again = Store::new(dir.path(), "f".into());
    again.load().unwrap();
    assert_eq!(again.newest_step(), Some(5), "it was not there to be deleted");
    again.reject().unwrap();
    assert_eq!(loaded(dir.path()).state, state());
}
