//! The `[build]` command and programs older than their sources.

use std::fs;
use std::time::Duration;

use crate::support::Project;

/// `make.sh` stands for cargo: it "compiles" source.sh into target/debug/tool, with a dependency file.
fn project() -> Project {
    let project = Project::new(
        r#"
[build]
command = ["sh", "make.sh"]
[stage.s]
run = ["tool"]
outputs = ["o"]
"#,
    );
    project.write(
        "make.sh",
        "echo build >> $SIDE; env > build.env; mkdir -p target/debug; cp source.sh target/debug/tool; chmod +x target/debug/tool; echo \"$PWD/target/debug/tool: $PWD/source.sh\" > target/debug/tool.d",
    );
    project.write("source.sh", "#!/bin/sh\nout=$(sed -n 's/.*\"o\": \"\\(.*\\)\".*/\\1/p' \"$TESTFORGE_REQUEST\"); echo 1 > \"$out\"\n");
    project
}

#[test]
fn builds_when_a_program_is_missing_or_older_than_its_source() {
    let project = project();
    project.runner(&["plan"]).expect(0).says("the program `tool` is not built");
    project.runner(&["run", "--no-build"]).expect(2).says("there is no usable program `tool`");
    project.runner(&["run"]).expect(0).says("build: sh make.sh (the program `tool` is not built)");
    assert_eq!(project.executed(), ["build"]);
    project.runner(&["run"]).expect(0).says("0 done, 1 hits");
    assert!(project.executed().is_empty(), "nothing to build");

    std::thread::sleep(Duration::from_millis(30));
    let text = project.read("source.sh");
    project.write("source.sh", &(text + "# changed\n"));
    let refused = project.runner(&["run", "--no-build"]).expect(2);
    refused.says("is older than its source").says("rebuild it: sh make.sh");
    project.runner(&["plan"]).expect(0).says("is older than its source");
    project.runner(&["run"]).expect(0).says("code.program changed");
    assert_eq!(project.executed(), ["build"]);
}

#[test]
fn the_run_s_time_is_without_the_build_s() {
    let project = project();
    project.write("make.sh", &("sleep 5; ".to_owned() + &project.read("make.sh")));
    let out = project.runner(&["run", "--format", "json"]).expect(0).out;
    let close: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let record = project.newest_text("experiment.json");
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let [said, kept] = [&close["run"]["wall_s"], &record["wall_s"]].map(|s| s.as_f64().unwrap());
    assert!((said - kept).abs() < 4.0, "{said} said, {kept} kept");
}

#[test]
fn a_failing_build_stops_everything() {
    let project = project();
    project.write("make.sh", "echo the compiler says no; exit 1");
    let run = project.runner(&["run"]).expect(3);
    run.says("the compiler says no").says("the build command `sh make.sh` failed");
    assert!(!project.path("experiments").exists());
}

#[test]
fn the_build_does_not_see_what_cargo_run_sets() {
    let project = project();
    let set = [
        ("CARGO_PKG_NAME", "runner"),
        ("CARGO_MANIFEST_DIR", "/x"),
        ("CARGO", "/x/cargo"),
        ("LD_LIBRARY_PATH", "/x"),
        ("RUSTUP_TOOLCHAIN", "x"),
        ("KEPT", "1"),
    ];
    project.runner_with(&["run"], &set).expect(0);
    let seen = fs::read_to_string(project.path("build.env")).unwrap();
    assert!(seen.contains("KEPT=1"));
    for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO=", "LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN"] {
        assert!(!seen.contains(name), "{name} reached the build");
    }
}

#[test]
fn an_outdated_program_that_can_t_describe_itself_is_built_first() {
    let project = project();
    let text = project.read("pipeline.toml").replace("run = [\"tool\"]", "run = [\"tool\"]\nprotocol = 2");
    fs::write(project.path("pipeline.toml"), text).unwrap();
    project.write("source.sh", "#!/bin/sh\necho an old skeleton\n");
    project.runner(&["run"]).expect(2).says("`tool --describe`: not a description");
    std::thread::sleep(Duration::from_millis(30));
    let description = r#"{"name":"tool","protocol":2,"version":"1","inputs":[],"outputs":[{"name":"o","description":"","required":true,"volatile":false}],"params":{"type":"object"}}"#;
    project.write(
        "source.sh",
        &format!("#!/bin/sh\nif [ \"$1\" = --describe ]; then echo '{description}'; else echo 1 > $(dirname $(dirname $TESTFORGE_REQUEST))/o; fi\n"),
    );
    project.runner(&["plan"]).expect(0).says("is not built");
    project.runner(&["run"]).expect(0);
}
