//! Faults of the pipeline file: place, text, suggestion, exit code 2, nothing run.

use crate::support::{Project, TWO_STAGES};

const HEAD: &str = "[stage.a]\nrun = [\"sh\", \"-c\", \"echo ran >> $SIDE; echo 1 > {out.o}\"]\noutputs = [\"o\"]\npass_env = [\"SIDE\"]\n";

/// Every case: what is added to a good pipeline (which ends with line 5), what the error says.
#[test]
fn faults_are_placed_and_explained() {
    let cases: [(&str, &[&str]); 36] = [
        ("env = [\"A=B\"]", &["6:8: `env`: \"A=B\" is not the name of a variable"]),
        (
            "[stage.b]\nrun = [\"sh\", \"a\\u0000b\"]\noutputs = [\"o\"]",
            &["7:14: stage `b`: an argument holds a zero byte"],
        ),
        ("secrets = [\"T\"]\nenv = [\"T\"]", &["6:11: `T` is a secret and also stands in `env`"]),
        (
            "params = { n = 1 }\nmatrix = { n = [1, 2] }",
            &["6:16: stage `a`: `n` is a parameter and an axis of the matrix"],
        ),
        ("inptus = {}", &["pipeline.toml:6:1: unknown key `inptus`", "did you mean `inputs`?"]),
        (
            "inputs = { x = \"b.o\" }",
            &["pipeline.toml:6:16: input `x`: there is no stage `b`", "did you mean `a`?"],
        ),
        ("inputs = { x = \"nonsense\" }", &["6:16: input `x`: `nonsense` is neither"]),
        ("inputs = { x = \"file:dat\" }", &["6:16: input `x`: `dat` does not exist", "did you mean `data`?"]),
        ("inputs = { x = \"a.o\" }", &["6:16: the stages form a cycle: a -> a"]),
        (
            "[stage.b]\nrun = [\"sh\"]\noutputs = [\"o\"]\ninputs = { x = \"a.p\" }",
            &["9:16: input `x`: `a` has no output `p`"],
        ),
        ("[stage.b]\noutputs = [\"o\"]", &["6:8: the stage `b` has no `run`"]),
        ("[stage.b]\nrun = [\"sh\"]", &["6:8: the stage `b` has no `outputs`"]),
        (
            "[stage.b]\nrun = \"sh\"\noutputs = [\"o\"]",
            &["7:7: `run` must be an array of strings; \"sh\" is a string"],
        ),
        ("[stage.\"b c\"]\nrun = [\"sh\"]\noutputs = [\"o\"]", &["6:8: `b c` can't be the name of a stage"]),
        (
            "[stage.b]\nrun = [\"sh\", \"{in.y}\"]\noutputs = [\"o\"]",
            &["7:14: `{in.y}` asks for the input `y`"],
        ),
        ("[stage.b]\nrun = [\"sh\"]\noutputs = [\"live\"]", &["8:12: `live` can't be an output"]),
        ("[stage.b]\nrun = [\"sh\"]\noutputs = [\"o\", \"o\"]", &["8:17: the output `o` is named twice"]),
        ("timeout = \"9999999999999d\"", &["6:11: `9999999999999d` is longer than 100 years"]),
        ("grace = \"200000000000d\"", &["6:9: `200000000000d` is longer"]),
        ("params = { \"a/b\" = 1 }", &["6:12: `a/b` can't be the name of a parameter"]),
        ("matrix = { \"../up\" = [1] }", &["6:12: `../up` can't be the name of a parameter"]),
        (
            "matrix = { a = [1,2,3,4,5,6,7,8,9,0], b = [1,2,3,4,5,6,7,8,9,0], c = [1,2,3,4,5,6,7,8,9,0], d = [1,2,3,4,5,6,7,8,9,0], e = [1, 2] }",
            &["6:12: the matrix has too many combinations"],
        ),
        (
            "matrix = { a = [\"long-value-long-value-long-value-long-value-long-value-long-value-long-value-long-value-long-value-long-value-long-value-long-value-\"], b = [\"long-value-long-value-long-value-long-value-long-value-long-value-long-value-long-value-long-value-long-value-long-value-long-value-\"] }",
            &["6:12: the names of the matrix's instances would be too long"],
        ),
        ("[view]\n\"experiment.json\" = \"a.o/x\"", &["7:1: `experiment.json` can't be a path of the view"]),
        ("[view]\n\"stages/a\" = \"a.o/x\"", &["7:1: `stages/a` can't be a path of the view"]),
        ("timeout = \"soon\"", &["6:11: `soon` is not a duration"]),
        ("resources = { cpu = 1 }", &["6:15: unknown key `cpu` in `resources`", "did you mean `cpus`?"]),
        ("repeat = -1", &["6:10: `repeat` must lie in"]),
        ("protocol = 3", &["6:12: `protocol` must lie in 0..=2"]),
        ("volatile = [\"times\"]", &["6:12: `volatile` names `times`"]),
        ("matrix = { n = 3 }", &["6:16: `matrix.n` must be an array"]),
        ("code = [\"none/*.py\"]", &["6:9: stage `a`: no file matches `none/*.py`"]),
        ("tools = [\"no-such-tool\"]", &["2:8: stage `a`: the tool `no-such-tool`: not found on PATH"]),
        ("params = { x = nan }", &["6:16: `NaN` can't be a parameter"]),
        ("[stage.a]", &["pipeline.toml:6:8:", "duplicate key"]),
        ("[profil.x]", &["6:2: unknown key `profil`", "did you mean `profile`?"]),
    ];
    for (text, expected) in cases {
        let project = Project::new(&format!("{HEAD}{text}\n"));
        project.write("data/a", "x");
        let run = project.runner(&["run"]).expect(2);
        for part in expected {
            run.says(part);
        }
        assert!(project.executed().is_empty(), "something ran: {text}");
        assert!(!project.path("experiments").exists(), "{text}");
    }
}

#[test]
fn all_faults_are_shown_at_once() {
    let project = Project::new("[stage.a]\nrnu = [\"sh\"]\noutputs = [\"o\"]\ntimeout = 3\n");
    project
        .runner(&["run"])
        .expect(2)
        .says("unknown key `rnu`")
        .says("has no `run`")
        .says("`timeout` must be a string");
}

#[test]
fn the_file_itself() {
    let project = Project::new("");
    project.write("pipeline.toml", "schema = 1\n[stage.a\n");
    project.runner(&["run"]).expect(2).says("pipeline.toml:2:");
    project.write("pipeline.toml", "schema = 2\n");
    project.runner(&["run"]).expect(2).says("1:10: schema 2 is not known");
    project.write("pipeline.toml", "[stage.a]\n");
    project.runner(&["run"]).expect(2).says("`schema` is missing");
    project.runner(&["run", "elsewhere.toml"]).expect(2).says("elsewhere.toml: can't read the pipeline");
    std::fs::write(project.path("pipeline.toml"), [0xff, 0xfe]).unwrap();
    project.runner(&["run"]).expect(2).says("pipeline.toml:1:1: the byte 0xff is not UTF-8");
    std::fs::write(project.path("pipeline.toml"), b"schema = 1\n# \xe4").unwrap();
    project.runner(&["run"]).expect(2).says("pipeline.toml:2:3: the byte 0xe4 is not UTF-8");
    project.runner(&["run", "/dev/zero"]).expect(2).says("larger than 16 MiB");
    project.runner(&["run", "."]).expect(2).says("name the file in it");
    let deep = format!("schema = 1\nx = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    std::fs::write(project.path("pipeline.toml"), deep).unwrap();
    project.runner(&["run"]).expect(2).says("pipeline.toml:2:");
    let dotted = format!("schema = 1\n[stage.a.params]\n{}x = 1", "a.".repeat(50_000));
    std::fs::write(project.path("pipeline.toml"), dotted).unwrap();
    project.runner(&["run"]).expect(2).says("pipeline.toml:");
    let many: String = (0..50_000).map(|i| format!("k{i} = 1\n")).collect();
    std::fs::write(project.path("pipeline.toml"), format!("schema = 1\n[stage.a]\n{many}")).unwrap();
    project.runner(&["run"]).expect(2).says("pipeline.toml:3:1: unknown key");
}

#[test]
fn cycles_name_every_stage_on_them() {
    let stage = |name: &str, input: &str| {
        format!("[stage.{name}]\nrun = [\"sh\"]\ninputs = {{ x = \"{input}.o\" }}\noutputs = [\"o\"]\n")
    };
    let project =
        Project::new(&(stage("c", "b") + &stage("a", "c") + &stage("b", "a") + &stage("after", "a")));
    project.runner(&["run"]).expect(2).says("pipeline.toml:8:16: the stages form a cycle: a -> b -> c -> a");
    project.runner(&["graph"]).expect(2).says("cycle");
}

#[test]
fn an_unreadable_input_is_named() {
    let project = Project::new(TWO_STAGES);
    project.write("data/a", "x");
    std::os::unix::fs::symlink("loop", project.path("data/loop")).unwrap();
    project.runner(&["run"]).expect(2).says("data/loop").says("can't read");
    std::fs::remove_file(project.path("data/loop")).unwrap();
    std::os::unix::fs::symlink(".", project.path("data/up")).unwrap();
    project.runner(&["run"]).expect(2).says("a link to a folder above it");
}

#[test]
fn an_input_that_holds_the_cache_is_refused() {
    let project = Project::new("[stage.a]\nrun = [\"sh\"]\ninputs = { x = \"file:.\" }\noutputs = [\"o\"]");
    project.runner(&["run"]).expect(2).says("holds the runner's cache");
}

#[test]
fn an_input_is_set_on_the_command_line() {
    let project = Project::new(TWO_STAGES);
    project.write("data/a", "x");
    project.write("other/a", "x\ny\n");
    project.runner(&["run", "--experiment", "one"]).expect(0);
    let set = ["--set", "copy.inputs.data=file:other"];
    project.runner(&["plan", set[0], set[1]]).expect(0).says("inputs.data changed");
    project.runner(&["run", "--experiment", "two", set[0], set[1]]).expect(0);
    project.runner(&["plan", set[0], set[1]]).expect(0).says("2 of 2");
    project.runner(&["plan"]).expect(0).says("2 of 2");
    assert!(project.read("experiments/two/config.yaml").contains("file:other"));
    project.runner(&["plan", "--set", "copy.inputs.dota=file:other"]).expect(2).says("did you mean `data`?");
    project.runner(&["plan", "--set", "copy.inputs.data=file:othr"]).expect(2).says("did you mean `other`?");
    project.runner(&["plan", "--set", "copy.inputs.data=copy.out"]).expect(2).says("copy");
    project.runner(&["plan", "--set", "copy.inputs.data=nonsense"]).expect(2).says("STAGE.OUTPUT");
    project.runner(&["plan", "--set", "copy.inputs.=x"]).expect(2).says("STAGE.inputs.NAME=REFERENCE");
}

#[test]
fn the_command_line_has_suggestions_too() {
    let project = Project::new(TWO_STAGES);
    project.write("data/a", "x");
    project
        .runner(&["run", "--only", "cout"])
        .expect(2)
        .says("there is no stage `cout`")
        .says("did you mean `count`?");
    project.runner(&["run", "--set", "cout.unit=1"]).expect(2).says("did you mean `count`?");
    project
        .runner(&["run", "--set", "count.unt=1"])
        .expect(2)
        .says("is no parameter")
        .says("did you mean `unit`?");
    project.runner(&["run", "--set", "copy.unit=1"]).expect(2).says("the stage has no `params`");
    project
        .runner(&["run", "--set", "unit=1"])
        .expect(2)
        .says("is neither STAGE.PARAM=VALUE nor STAGE.inputs.NAME=REFERENCE");
    project.runner(&["run", "--profile", "x"]).expect(2).says("there is no profile `x`");
    for id in ["../up", &"x".repeat(101)] {
        project.runner(&["run", "--experiment", id]).expect(2).says("can't be the name of an experiment");
    }
    project.runner(&["rn"]).expect(2);
    project.runner(&["--help"]).expect(0).says("plan");
}

const PROFILES: &str = r#"
gate = "a.o/gates.json"
[defaults]
seed = 7
[stage.a]
run = ["sh", "-c", "mkdir {out.o}; echo {param.x} {param.y} $(sed -n 's/.*\"seed\": //p' $TESTFORGE_REQUEST) > {out.o}/text; echo '{\"schema_version\":1,\"passed\":false,\"gates\":[]}' > {out.o}/gates.json"]
params = { x = 1, y = 2 }
outputs = ["o"]
[stage.b]
run = ["sh", "-c", "ls {in.first} > {out.o}"]
inputs = { first = "a.o", second = "file:data" }
outputs = ["o"]
[stage.heavy]
run = ["sh", "-c", "exit 1"]
outputs = ["o"]
[profile.small]
seed = 8
enforce_gate = false
remove = ["heavy"]
[profile.small.stage.a]
params.y = 3
[profile.small.stage.b]
inputs.second = ""
[profile.small.stage.extra]
run = ["sh", "-c", "echo extra > {out.o}"]
outputs = ["o"]
[profile.broken]
remove = ["a"]
gate = ""
[profile.misspelt]
enforce_gates = false
"#;

#[test]
fn a_profile_overrides_key_by_key_adds_and_removes() {
    let project = Project::new(&PROFILES.replace("[profile.misspelt]\nenforce_gates = false", ""));
    project.write("data/a", "x");
    project.runner(&["run"]).expect(3);
    let small = project.runner(&["run", "--profile", "small"]).expect(0);
    small.says("not enforced in this profile").says("experiment small-001: 3 stages");
    assert_eq!(project.newest_text("stages/a/o/text").trim(), "1 3 8,");
    let config = project.newest_text("config.yaml");
    assert!(
        config.contains("seed: 8") && config.contains("extra:") && !config.contains("heavy:"),
        "{config}"
    );
    assert!(!config.contains("second"), "{config}");
    assert!(!config.contains(project.path("").to_str().unwrap()));
    project.runner(&["run", "--profile", "smal"]).expect(2).says("did you mean `small`?");
    let broken = project.runner(&["run", "--profile", "broken"]).expect(2);
    broken.says("there is no stage `a`").says("the profile removes that stage");
}

#[test]
fn profiles_that_are_not_asked_for_are_checked_too() {
    let project = Project::new(PROFILES);
    project
        .runner(&["plan"])
        .expect(2)
        .says("unknown key `enforce_gates` in [profile.misspelt]")
        .says("`enforce_gate`");
}
