//! Hits, misses and their reasons; damage to the store.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{Project, TWO_STAGES, files};

fn two_stages() -> Project {
    let project = Project::new(TWO_STAGES);
    project.write("data/a", "hello");
    project.runner(&["run"]).expect(0);
    assert_eq!(project.executed(), ["copy", "count"]);
    project
}

#[test]
fn the_second_run_is_all_hits_and_its_outputs_are_there() {
    let project = two_stages();
    project.runner(&["run"]).expect(0).says("0 done, 2 hits");
    assert!(project.executed().is_empty());
    assert_eq!(project.read("experiments/run-002/stages/count/n").trim(), "5\nbytes");
    let second = project.runner(&["run", "--experiment", "run-002"]).expect(0);
    second.says("experiment run-002");
}

#[test]
fn every_kind_of_change_is_named() {
    let project = two_stages();
    let plan = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut all = vec!["plan"];
        all.extend(arguments);
        project.runner_with(&all, environment).expect(0)
    };
    plan(&[], &[]).says("2 of 2 stages are cached");
    plan(&["--set", "count.unit=words"], &[]).says("params.unit changed: \"bytes\" -> \"words\"");
    plan(&[], &[("FLAVOUR", "")]).says("env.FLAVOUR changed: (unset) -> \"\"");
    project.write("data/deep/b", "new");
    plan(&[], &[]).says("inputs.data changed: deep (new)").says("runs, unless copy comes out unchanged");
    project.write("data/a", "other");
    plan(&[], &[]).says("inputs.data changed: a, deep (new)");
    project.pipeline(&TWO_STAGES.replace("cp {in", "cp -f {in"));
    plan(&[], &[]).says("run changed");
    project.runner(&["why", "copy"]).expect(0).says("run changed").says("inputs.data changed");
    assert!(project.executed().is_empty(), "plan and why run nothing");
}

#[test]
fn a_changed_script_or_glob_file_is_named() {
    let project = Project::new(
        r#"
[stage.s]
run = ["sh", "tools/s.sh", "{out.o}"]
code = ["tools/lib/*.txt"]
outputs = ["o"]
"#,
    );
    project.write("tools/s.sh", "cat tools/lib/x.txt > $1");
    project.write("tools/lib/x.txt", "1");
    project.runner(&["run"]).expect(0);
    project.runner(&["plan"]).expect(0).says("1 of 1");
    project.write("tools/lib/x.txt", "2");
    project.runner(&["plan"]).expect(0).says("code.tools/lib/x.txt changed");
    project.runner(&["run"]).expect(0);
    assert_eq!(project.newest_text("stages/s/o"), "2");
    project.write("tools/s.sh", "cat tools/lib/x.txt > $1 # changed");
    project.runner(&["plan"]).expect(0).says("code.tools/s.sh changed");
}

#[test]
fn an_equal_output_cuts_off_early() {
    let project = two_stages();
    project.write("data/b", "a file that nobody copies");
    project.runner(&["run"]).expect(0).says("1 done, 1 hits");
    assert_eq!(project.executed(), ["copy"]);
}

#[test]
fn neither_a_stage_s_name_nor_its_resources_nor_the_folder_enter_a_key() {
    let project = two_stages();
    let renamed = TWO_STAGES.replace("stage.copy", "stage.duplicate").replace("copy.text", "duplicate.text");
    project.pipeline(
        &renamed
            .replace("outputs = [\"n\"]", "outputs = [\"n\"]\nresources = { cpus = 2 }\ntimeout = \"1h\""),
    );
    project.runner(&["run"]).expect(0).says("0 done, 2 hits");

    let elsewhere = Project::new(TWO_STAGES);
    elsewhere.write("data/a", "hello");
    let cache = project.path(".testforge").display().to_string();
    elsewhere.runner_with(&["run"], &[("TESTFORGE_CACHE", &cache)]).expect(0).says("0 done, 2 hits");
    assert!(!elsewhere.path(".testforge").exists());
}

#[test]
fn a_damaged_blob_is_set_aside_and_made_again() {
    let project = two_stages();
    let blob = project.blobs().into_iter().find(|b| fs::read_to_string(b).unwrap() == "hello").unwrap();
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    fs::write(&blob, "hELLO").unwrap();
    project.runner(&["plan"]).expect(0).says("was damaged in the cache");
    let run = project.runner(&["run"]).expect(0);
    run.says("1 done, 1 hits");
    assert_eq!(project.executed(), ["copy"]);
    assert_eq!(project.newest_text("stages/copy/text/a"), "hello");
    assert!(!files(&project.path(".testforge/quarantine")).is_empty());
}

#[test]
fn damage_found_during_a_run_is_said_once() {
    let project = two_stages();
    for blob in project.blobs() {
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, "x").unwrap();
    }
    let run = project.runner(&["run"]).expect(0);
    assert!(run.out.matches("is set aside as").count() >= 2, "{}", run.out);
    assert_eq!(project.executed(), ["copy", "count"]);
    let again = project.runner(&["run"]).expect(0);
    again.says("0 done, 2 hits");
    assert!(!again.out.contains("set aside"));
}

#[test]
fn missing_blobs_trees_and_torn_entries_are_misses() {
    for kind in ["blobs", "trees", "actions"] {
        let project = Project::new(TWO_STAGES);
        project.write("data/a", "hello");
        project.write("data/b", "so that the input's tree is not the output's");
        project.runner(&["run"]).expect(0);
        for file in files(&project.path(&format!(".testforge/{kind}"))) {
            if kind == "actions" {
                let text = fs::read_to_string(&file).unwrap();
                fs::write(&file, &text[..text.len() / 2]).unwrap();
            } else {
                fs::remove_file(file).unwrap();
            }
        }
        // Without its tree, `copy` runs again; what it makes is the same, so that `count` is cut off.
        let expected = if kind == "trees" { "1 done, 1 hits" } else { "2 done, 0 hits" };
        project.runner(&["run"]).expect(0).says(expected);
        assert_eq!(project.newest_text("stages/count/n").trim(), "5\nbytes");
        project.runner(&["run"]).expect(0).says("0 done, 2 hits");
    }
}

#[test]
fn an_edited_experiment_does_not_reach_later_runs() {
    let project = two_stages();
    let file = project.path("experiments/run-001/stages/copy/text/a");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    fs::write(&file, "edited by hand").unwrap();
    project.runner(&["run"]).expect(0);
    assert_eq!(project.newest_text("stages/copy/text/a"), "hello");
}

#[test]
fn failures_are_never_cached() {
    let project = Project::new(
        "[stage.f]\nrun = [\"sh\", \"-c\", \"echo f >> $SIDE; exit 9\"]\noutputs = [\"o\"]\npass_env = [\"SIDE\"]",
    );
    project.runner(&["run"]).expect(3);
    project.runner(&["run"]).expect(3);
    assert_eq!(project.executed(), ["f", "f"]);
    assert!(files(&project.path(".testforge/actions")).is_empty());
}

#[test]
fn force_runs_again_and_a_different_result_is_reported() {
    let project = Project::new(
        "[stage.r]\nrun = [\"sh\", \"-c\", \"cat /proc/sys/kernel/random/uuid > {out.o}\"]\noutputs = [\"o\"]",
    );
    project.runner(&["run"]).expect(0);
    let first = project.newest_text("stages/r/o");
    project.runner(&["run"]).expect(0).says("0 done, 1 hits");
    assert_eq!(project.newest_text("stages/r/o"), first);
    project.runner(&["run", "--force", "r"]).expect(0).says("not deterministic: the output `o` differs");
    assert_ne!(project.newest_text("stages/r/o"), first);
}

#[test]
fn a_volatile_output_never_cuts_off() {
    let pipeline = |n: u32| {
        format!(
            r#"
[stage.p]
run = ["sh", "-c", "echo p >> $SIDE; echo same > {{out.solid}}; echo same > {{out.times}}"]
params = {{ n = {n} }}
outputs = ["solid", "times"]
volatile = ["times"]
pass_env = ["SIDE"]
[stage.from-solid]
run = ["sh", "-c", "echo from-solid >> $SIDE; cp {{in.x}} {{out.o}}"]
inputs = {{ x = "p.solid" }}
outputs = ["o"]
pass_env = ["SIDE"]
[stage.from-times]
run = ["sh", "-c", "echo from-times >> $SIDE; cp {{in.x}} {{out.o}}"]
inputs = {{ x = "p.times" }}
outputs = ["o"]
pass_env = ["SIDE"]
"#
        )
    };
    let project = Project::new(&pipeline(1));
    project.runner(&["run", "--jobs", "1"]).expect(0);
    assert_eq!(project.executed(), ["p", "from-solid", "from-times"]);
    project.runner(&["run"]).expect(0).says("3 hits");
    project.pipeline(&pipeline(2));
    project.runner(&["run"]).expect(0);
    assert_eq!(project.executed(), ["p", "from-times"]);
}

#[test]
fn repeats_have_their_own_results_all_the_way_down() {
    let project = Project::new(
        r#"
[stage.a]
run = ["sh", "-c", "echo a >> $SIDE; echo 1 > {out.o}"]
outputs = ["o"]
pass_env = ["SIDE"]
[stage.b]
run = ["sh", "-c", "echo b >> $SIDE; cp {in.x} {out.o}"]
inputs = { x = "a.o" }
outputs = ["o"]
pass_env = ["SIDE"]
[stage.a-repeat]
run = ["sh", "-c", "echo a >> $SIDE; echo 1 > {out.o}"]
outputs = ["o"]
pass_env = ["SIDE"]
repeat = 1
[stage.b-repeat]
run = ["sh", "-c", "echo b >> $SIDE; cp {in.x} {out.o}"]
inputs = { x = "a-repeat.o" }
outputs = ["o"]
pass_env = ["SIDE"]
"#,
    );
    project.runner(&["run", "--jobs", "1"]).expect(0).says("4 done, 0 hits");
    let mut ran = project.executed();
    ran.sort();
    assert_eq!(ran, ["a", "a", "b", "b"]);
    project.runner(&["run"]).expect(0).says("0 done, 4 hits");
}

#[test]
fn outputs_keep_links_and_executable_bits() {
    let project = Project::new(
        r#"
[stage.s]
run = ["sh", "-c", "mkdir -p {out.o}/bin {out.o}/empty; echo x > {out.o}/bin/p; chmod +x {out.o}/bin/p; echo x > {out.o}/plain; ln -s bin/p {out.o}/link"]
outputs = ["o"]
"#,
    );
    project.runner(&["run"]).expect(0);
    project.runner(&["run"]).expect(0).says("1 hits");
    let dir = project.newest().join("stages/s/o");
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o111;
    assert_ne!(mode("bin/p"), 0);
    assert_eq!(mode("plain"), 0);
    assert!(dir.join("empty").is_dir());
    assert_eq!(fs::read_link(dir.join("link")).unwrap().to_str(), Some("bin/p"));
}

#[test]
fn a_link_out_of_an_output_is_refused() {
    let project = Project::new(
        "[stage.s]\nrun = [\"sh\", \"-c\", \"mkdir {out.o}; ln -s ../../../x {out.o}/l\"]\noutputs = [\"o\"]",
    );
    project.runner(&["run"]).expect(3).says("a symbolic link that leads out of the output");
}

#[test]
fn a_tool_s_version_is_part_of_the_key() {
    let project = Project::new(
        "[stage.s]\nrun = [\"sh\", \"-c\", \"true > {out.o}\"]\noutputs = [\"o\"]\ntools = [\"bin/mytool\"]",
    );
    project.script("bin/mytool", "echo mytool 1.0");
    project.runner(&["run"]).expect(0);
    project.runner(&["plan"]).expect(0).says("1 of 1");
    project.script("bin/mytool", "echo mytool 1.1");
    project.runner(&["plan"]).expect(0).says("tools.bin/mytool changed: mytool 1.0 -> mytool 1.1");
}

#[test]
fn an_input_that_changes_while_the_stage_runs_spoils_the_result() {
    let project = Project::new(
        "[stage.s]\nrun = [\"sh\", \"-c\", \"sleep 0.1; echo more >> data/a; cp {in.d}/a {out.o}\"]\ninputs = { d = \"file:data\" }\noutputs = [\"o\"]",
    );
    project.write("data/a", "x");
    project.runner(&["run"]).expect(3).says("the input `d` (data: a) changed while the stage ran");
}

#[test]
fn an_input_that_changed_before_its_stage_began_stops_it_at_once() {
    let project = Project::new(
        "[stage.first]\nrun = [\"sh\", \"-c\", \"echo more >> data/a; echo 1 > {out.o}\"]\noutputs = [\"o\"]\n[stage.second]\nrun = [\"sh\", \"-c\", \"echo second >> $SIDE; cp {in.x} {out.o}\"]\ninputs = { x = \"first.o\", d = \"file:data\" }\noutputs = [\"o\"]\npass_env = [\"SIDE\"]",
    );
    project.write("data/a", "x");
    project.runner(&["run"]).expect(3).says("the input `d` (data: a) changed since this run began");
    assert!(project.executed().is_empty());
    project.runner(&["run"]).expect(0).says("1 done, 1 hits");
}

#[test]
fn a_program_replaced_during_a_run_spoils_no_key() {
    let project = Project::new(
        "[stage.first]\nrun = [\"sh\", \"-c\", \"echo '# newer' >> s.sh; echo 1 > {out.o}\"]\noutputs = [\"o\"]\n[stage.second]\nrun = [\"./s.sh\", \"{in.x}\", \"{out.o}\"]\ninputs = { x = \"first.o\" }\noutputs = [\"o\"]\n",
    );
    project.script("s.sh", "cp $1 $2");
    project.runner(&["run"]).expect(3).says("s.sh changed since this run began");
    project.runner(&["run"]).expect(0).says("1 done, 1 hits");
}

#[test]
fn an_output_linked_to_a_workspace_file_is_copied() {
    let project = Project::new(
        "[stage.s]\nrun = [\"sh\", \"-c\", \"ln {in.d} {out.o}\"]\ninputs = { d = \"file:data/a\" }\noutputs = [\"o\"]",
    );
    project.write("data/a", "mine");
    project.runner(&["run"]).expect(0);
    let meta = fs::metadata(project.path("data/a")).unwrap();
    assert_ne!(meta.permissions().mode() & 0o200, 0, "the user's file stays writable");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&meta), 1);
    project.write("data/a", "changed in place");
    assert_eq!(project.newest_text("stages/s/o"), "mine");
    project.runner(&["run"]).expect(0).says("1 done");
    assert!(files(&project.path(".testforge/quarantine")).is_empty());
}
