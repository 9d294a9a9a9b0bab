//! Stages and inputs that misbehave: no wrong data in the cache, nothing that hangs, nothing left behind.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Project, alive, files, wait_for};

/// `copy` makes a folder, `meddle` does something to it, `count` reads it afterwards.
fn meddling(deed: &str) -> Project {
    let project = Project::new(&format!(
        r#"
[stage.copy]
run = ["sh", "-c", "mkdir {{out.text}}; echo hello > {{out.text}}/a; echo b > {{out.text}}/b"]
outputs = ["text"]
[stage.meddle]
run = ["sh", "-c", "{deed}; echo done > {{out.o}}"]
inputs = {{ text = "copy.text" }}
outputs = ["o"]
[stage.count]
run = ["sh", "-c", "cat {{in.text}}/a > {{out.n}}"]
inputs = {{ text = "copy.text", after = "meddle.o" }}
outputs = ["n"]
"#
    ));
    project.write("note", "");
    project
}

#[test]
fn a_stage_that_changes_its_input_spoils_nothing() {
    let deeds = [
        "sed -i s/hello/wrong/ {in.text}/a",
        "rm {in.text}/a",
        "echo more > {in.text}/new",
        "chmod +w {in.text}/a; echo wrong > {in.text}/a",
        "mv {in.text} {in.text}.away; mkdir {in.text}",
        "chmod +w {in.text}/a; touch -r {in.text}/a ref; printf 'HELLO\\\\n' > {in.text}/a; touch -r ref {in.text}/a",
    ];
    for deed in deeds {
        let project = meddling(deed);
        project
            .runner(&["run", "--keep-going"])
            .expect(3)
            .says("changed while the stage ran")
            .says("work on a copy");
        // Whoever comes after sees the right data, in the same folder and in a new one.
        let text = project.read("pipeline.toml").replace(deed, "true");
        project.write("pipeline.toml", &text);
        project.runner(&["run", "--experiment", "run-001"]).expect(0);
        assert_eq!(project.read("experiments/run-001/stages/count/n"), "hello\n", "{deed}");
        project.runner(&["run"]).expect(0).says("3 hits");
        assert_eq!(project.newest_text("stages/copy/text/a"), "hello\n", "{deed}");
    }
}

#[test]
fn an_instance_s_output_is_guarded_too() {
    let project = Project::new(
        r#"
[stage.sweep]
run = ["sh", "-c", "mkdir {out.o}; echo {param.n} > {out.o}/n"]
matrix = { n = [1, 2] }
outputs = ["o"]
[stage.collect]
run = ["sh", "-c", "sed -i s/2/7/ {in.all}/n=2/n; cat {in.all}/*/n > {out.sum}"]
inputs = { all = "sweep[*].o" }
outputs = ["sum"]
"#,
    );
    project.runner(&["run"]).expect(3).says("the input `all` (sweep[n=2].o: n) changed while the stage ran");
}

#[test]
fn an_output_changed_before_its_consumer_starts_is_noticed() {
    let project = Project::new(
        r#"
[stage.a]
run = ["sh", "-c", "mkdir {out.o}; echo right > {out.o}/a"]
outputs = ["o"]
[stage.b]
run = ["sh", "-c", "d=$(dirname $(dirname {out.o})); sed -i s/right/wrong/ $d/a/o/a; echo 1 > {out.o}"]
inputs = { late = "c.o" }
outputs = ["o"]
[stage.c]
run = ["sh", "-c", "cat {in.x}/a > {out.o}"]
inputs = { x = "a.o" }
outputs = ["o"]
[stage.d]
run = ["sh", "-c", "cat {in.x}/a > {out.o}"]
inputs = { x = "a.o", b = "b.o" }
outputs = ["o"]
"#,
    );
    project.runner(&["run"]).expect(3).says("the input `x` (a.o: a) changed since this run began");
}

#[test]
fn events_that_are_a_pipe_or_a_flood_hold_nobody_up() {
    let project = Project::new(
        r#"
[stage.pipe]
run = ["sh", "-c", "mkfifo $(dirname $TESTFORGE_REQUEST)/events.jsonl; sleep 0.4; echo 1 > {out.o}"]
outputs = ["o"]
timeout = "10s"
[stage.link]
run = ["sh", "-c", "ln -s /dev/zero $(dirname $TESTFORGE_REQUEST)/events.jsonl; sleep 0.4; echo 1 > {out.o}"]
outputs = ["o"]
[stage.flood]
run = ["sh", "-c", "head -c 60000000 /dev/zero > $(dirname $TESTFORGE_REQUEST)/events.jsonl; sleep 0.4; echo 1 > {out.o}"]
outputs = ["o"]
[stage.talk]
run = ["sh", "-c", "yes '{\"time_ms\":1,\"event\":{\"log\":{\"message\":\"words\"}}}' | head -n 100000 > $(dirname $TESTFORGE_REQUEST)/events.jsonl; echo 1 > {out.o}"]
outputs = ["o"]
"#,
    );
    let started = Instant::now();
    let outcome = project.runner(&["run"]).expect(0);
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    assert!(outcome.out.matches("words").count() <= 500);
    outcome.says("more lines");
}

#[test]
fn a_descendant_that_hides_is_ended_with_the_run() {
    let project = Project::new(
        r#"
[stage.a]
run = ["sh", "-c", "env -i setsid sh -c 'echo $$ > pid; exec sleep 300' & while [ ! -s pid ]; do sleep 0.01; done; echo 1 > {out.o}"]
outputs = ["o"]
"#,
    );
    project.runner(&["run"]).expect(0);
    assert!(!alive(&project.read("pid")));
}

#[test]
fn who_was_the_runner_s_child_before_stays() {
    let project =
        Project::new("[stage.a]\nrun = [\"sh\", \"-c\", \"echo 1 > {out.o}\"]\noutputs = [\"o\"]\n");
    let script = format!("sleep 60 & echo $! > pid; exec {} run", env!("CARGO_BIN_EXE_runner"));
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(project.path("")).stdout(std::process::Stdio::null());
    assert!(shell.status().unwrap().success());
    let pid = project.read("pid");
    assert!(alive(&pid));
    let number = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn scripts_of_the_same_name_do_not_hide_each_other() {
    let project = Project::new(
        r#"
[stage.a]
run = ["sh", "program", "{out.o}"]
code = ["program"]
outputs = ["o"]
"#,
    );
    project.write("program", "echo 1 > $1");
    project.runner(&["run"]).expect(0).says("1 done");
    project.write("program", "echo 2 > $1");
    project.runner(&["run"]).expect(0).says("code.program#2 changed").says("1 done");
    project.write("one/x.sh", "sh $1 $2");
    project.write("two/x.sh", "echo first > $1");
    let (one, two) = (project.path("one/x.sh"), project.path("two/x.sh"));
    project.pipeline(&format!(
        "[stage.a]\nrun = [\"sh\", {one:?}, {two:?}, \"{{out.o}}\"]\ncode = [\"one/*\"]\noutputs = [\"o\"]"
    ));
    project.runner(&["run"]).expect(0);
    project.write("two/x.sh", "echo second > $1");
    project.runner(&["run"]).expect(0).says("1 done");
    assert_eq!(project.newest_text("stages/a/o"), "second\n");
    project.write("one/x.sh", "sh $1 $2; true");
    project.runner(&["run"]).expect(0).says("1 done");
}

/// A file that shrinks while it is hashed must not end the runner.
#[test]
fn an_input_cut_short_while_it_is_read_is_survived() {
    let project = Project::new(
        "[stage.a]\nrun = [\"sh\", \"-c\", \"wc -c < {in.x} > {out.o}\"]\ninputs = { x = \"file:big\" }\noutputs = [\"o\"]",
    );
    let path = project.path("big");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::File::create(&path).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                file.set_len(64 << 20).unwrap();
                std::thread::sleep(Duration::from_millis(3));
                file.set_len(0).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        wait_for("the file", || path.exists());
        let statuses: Vec<_> = (0..15)
            .map(|_| project.command(&["plan"]).stdout(std::process::Stdio::null()).status())
            .collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for status in statuses {
            let status = status.unwrap();
            assert_eq!((status.code(), status.signal()), (Some(0), None));
        }
    });
}

/// A program that is asked what it is, and does not answer.
#[test]
fn a_signal_ends_a_command_that_is_only_planning() {
    let project = Project::new("[stage.a]\nrun = [\"./slow.sh\"]\nprotocol = 2\noutputs = [\"o\"]");
    project.script("slow.sh", "sleep 300 & echo $! > pid; wait");
    for arguments in [&["run"][..], &["plan"][..], &["run", "--format", "json"][..]] {
        let _ = fs::remove_file(project.path("pid"));
        let child = project.start(arguments);
        wait_for("the question", || fs::read_to_string(project.path("pid")).is_ok_and(|t| t.ends_with('\n')));
        let started = Instant::now();
        let id = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        assert!(started.elapsed() < Duration::from_secs(5));
        let pid = project.read("pid");
        wait_for("the answerer to end", || !alive(&pid));
        if arguments.contains(&"json") {
            let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(value["exit_code"], 130);
        }
    }
}

/// Whoever asks for a plan and gets none is told so; whoever has read enough is left alone.
#[test]
fn an_answer_that_can_not_be_written_is_a_failure() {
    let project =
        Project::new("[stage.a]\nrun = [\"sh\", \"-c\", \"echo 1; echo 1 > {out.o}\"]\noutputs = [\"o\"]");
    project.runner(&["run"]).expect(0);
    for arguments in [&["plan"][..], &["why", "a"], &["status"], &["graph"], &["log", "a"], &["doctor"]] {
        let to = |out: fs::File| {
            let output = project.command(arguments).stdout(out).stderr(std::process::Stdio::piped()).output();
            let output = output.unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let (code, said) = to(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        assert_eq!(code, Some(3), "{arguments:?}: {said}");
        assert!(said.contains("standard output"), "{arguments:?}: {said}");
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let (code, said) = to(writer.into());
        assert_eq!((code, said.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn a_damaged_tree_of_the_right_size_is_made_again() {
    let project = Project::new(
        r#"
[stage.a]
run = ["sh", "-c", "mkdir {out.o}; echo 1 > {out.o}/x"]
outputs = ["o"]
[stage.b]
run = ["sh", "-c", "cat {in.o}/x > {out.o}"]
inputs = { o = "a.o" }
outputs = ["o"]
"#,
    );
    project.runner(&["run"]).expect(0);
    for tree in crate::support::files(&project.path(".testforge/trees")) {
        let mut bytes = fs::read(&tree).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&tree, bytes).unwrap();
    }
    for action in crate::support::files(&project.path(".testforge/actions")) {
        fs::remove_file(action).unwrap();
    }
    project.runner(&["run"]).expect(0).says("2 done").says("damaged and is set aside");
    project.runner(&["run"]).expect(0).says("2 hits");
}

#[test]
fn folders_where_the_cache_has_files_are_set_aside() {
    let project = Project::new(
        "[stage.a]\nrun = [\"sh\", \"-c\", \"mkdir {out.o}; echo 1 > {out.o}/x\"]\noutputs = [\"o\"]",
    );
    project.runner(&["run"]).expect(0);
    for kind in ["actions", "trees", "blobs"] {
        for file in crate::support::files(&project.path(&format!(".testforge/{kind}"))) {
            fs::remove_file(&file).unwrap();
            fs::create_dir(&file).unwrap();
        }
        project.runner(&["run"]).expect(0).says("1 done");
        project.runner(&["run"]).expect(0).says("1 hits");
    }
}

#[test]
fn pipes_where_the_cache_has_files_hold_nobody_up() {
    let project = Project::new(
        "[stage.a]\nrun = [\"sh\", \"-c\", \"mkdir {out.o}; echo 1 > {out.o}/x\"]\noutputs = [\"o\"]",
    );
    for kind in ["actions", "trees", "blobs", "history", "locks", "tools", "stat"] {
        project.runner(&["run"]).expect(0);
        let root = project.path(&format!(".testforge/{kind}"));
        for file in if root.is_file() { vec![root] } else { crate::support::files(&root) } {
            fs::remove_file(&file).unwrap();
            assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
        }
        let mut run = project.start(&["run"]);
        let ended = (0..600).find_map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            run.try_wait().unwrap()
        });
        run.kill().unwrap();
        assert_eq!(ended.and_then(|status| status.code()), Some(0), "{kind}");
        assert_eq!(project.newest_text("stages/a/o/x").trim(), "1", "{kind}");
    }
}

#[test]
fn an_experiment_that_is_used_again_shows_nothing_of_the_run_before() {
    let pipeline =
        |script: &str| format!("[stage.a]\nrun = [\"sh\", \"-c\", \"{script}\"]\noutputs = [\"report\"]\n");
    let project = Project::new(&pipeline("mkdir {out.report}; echo 1 > {out.report}/report.html"));
    project.runner(&["run", "--experiment", "e"]).expect(0).says("report: ");
    project.pipeline(&pipeline("exit 1"));
    let outcome = project.runner(&["run", "--experiment", "e"]).expect(3);
    assert!(!outcome.out.contains("report: "), "{}", outcome.out);
    assert!(!project.path("experiments/e/report.html").exists());
}

#[test]
fn secrets_in_every_disguise_are_masked() {
    let project = Project::new(
        r#"
[stage.a]
run = ["sh", "say.sh", "{out.o}"]
code = ["say.sh"]
outputs = ["o"]
secrets = ["TOKEN"]
"#,
    );
    let script = r#"live=$(dirname $TESTFORGE_REQUEST)
i=0; while [ $i -lt 9000 ]; do printf 'filler-%s-' "$TOKEN"; i=$((i+1)); done
echo '{"time_ms":1,"event":{"progress":{"done":1,"total":2,"unit":"hush-hush-\"quoted\""}}}' >> $live/events.jsonl
echo '{"time_ms":1,"event":{"log":{"message":"hush-hush-\"quoted\" said"}}}' >> $live/events.jsonl
echo x > "$live/$TOKEN.txt"
sleep 0.3
echo 1 > $1"#;
    project.write("say.sh", script);
    let secret = "hush-hush-\"quoted\"";
    let outcome = project.runner_with(&["run", "--format", "json"], &[("TOKEN", secret)]).expect(0);
    assert!(!outcome.out.contains("hush-hush") && outcome.out.contains("*** said"), "{}", outcome.out);
    let places = [".testforge", "experiments"].map(|dir| project.path(dir));
    for file in places.iter().flat_map(|dir| crate::support::files(dir)) {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        assert!(!text.contains("hush-hush"), "{}", file.display());
        assert!(!file.display().to_string().contains("hush-hush"), "{}", file.display());
    }
    project.write("say.sh", "mkdir $1; echo x > \"$1/$TOKEN\"");
    project.runner_with(&["run"], &[("TOKEN", secret)]).expect(3).says("the secret TOKEN");
}

/// More files than are made durable one by one.
#[test]
fn an_output_without_a_bottom_ends_its_stage_and_not_the_runner() {
    let dig = "import os,sys\nfor place in (sys.argv[1], os.environ['TMPDIR'] + '/x'):\n  os.mkdir(place); os.chdir(place)\n  for i in range(int(sys.argv[2])): os.mkdir('d'); os.chdir('d')\nopen('f', 'w').close()";
    let project = Project::new(&format!(
        "[stage.a]\nrun = [\"python3\", \"-c\", {dig:?}, \"{{out.o}}\", \"{{param.levels}}\"]\noutputs = [\"o\"]\nparams = {{ levels = 150 }}\n"
    ));
    project.runner(&["run"]).expect(0);
    project
        .runner(&["run", "--set", "a.levels=1000", "--experiment", "deep"])
        .expect(3)
        .says("more than 200 folders within each other");
    assert!(!project.path("experiments/deep/stages/a/o").exists(), "what failed is not left behind");
    let left = files(&project.path(".testforge/tmp"));
    assert!(left.is_empty(), "{left:?}");
    project.runner(&["plan"]).expect(0).says("1 of 1 stages are cached");
}

#[test]
fn an_output_of_many_files_is_kept_whole() {
    let project = Project::new(
        r#"
[stage.a]
run = ["sh", "-c", "mkdir -p {out.o}/in; for i in $(seq 300); do echo $i > {out.o}/in/$i; done"]
outputs = ["o"]
[stage.b]
run = ["sh", "-c", "cat {in.o}/in/* | wc -l > {out.o}"]
inputs = { o = "a.o" }
outputs = ["o"]
"#,
    );
    project.runner(&["run"]).expect(0).says("2 done");
    assert_eq!(project.newest_text("stages/b/o").trim(), "300");
    fs::remove_dir_all(project.path("experiments")).unwrap();
    project.runner(&["run"]).expect(0).says("2 hits");
    assert_eq!(project.newest_text("stages/a/o/in/300"), "300\n");
}
