//! The request file and `--describe`.

use serde_json::Value;

use crate::support::Project;

const DESCRIBED: &str = r##"
if [ "$1" = --describe ]; then
echo described >> "$HOME/described"
cat <<'JSON'
{"name":"tool","protocol":2,"version":"1","inputs":[{"name":"data","description":"rows","required":true,"volatile":false}],
"outputs":[{"name":"o","description":"result","required":true,"volatile":false},{"name":"times","description":"wall clock","required":false,"volatile":true}],
"params":{"type":"object","additionalProperties":false,"properties":{"n":{"type":"integer","minimum":1},"mode":{"$ref":"#/$defs/Mode"},"name":{"type":"string"}},"$defs":{"Mode":{"type":"string","enum":["fast","slow"]}}}}
JSON
exit 0
fi
dir=$(dirname "$(dirname "$TESTFORGE_REQUEST")")
cp "$TESTFORGE_REQUEST" "$dir/o"; echo x > "$dir/times"
"##;

fn project(keys: &str) -> Project {
    let project = Project::new(&format!(
        "[stage.s]\nrun = [\"./tool\"]\nprotocol = 2\ninputs = {{ data = \"file:data\" }}\noutputs = [\"o\", \"times\"]\n{keys}\n[stage.t]\nrun = [\"sh\", \"-c\", \"cp {{in.x}} {{out.o}}\"]\ninputs = {{ x = \"s.times\" }}\noutputs = [\"o\"]\n"
    ));
    project.script("tool", DESCRIBED);
    project.write("data/a", "x");
    project
}

#[test]
fn the_description_is_asked_once_and_its_volatile_outputs_count() {
    let project = project("params = { n = 3, mode = \"fast\" }");
    project.runner(&["run"]).expect(0);
    project.runner(&["run"]).expect(0).says("2 hits");
    assert_eq!(project.read("described").lines().count(), 1);
    let why = project.runner(&["why", "s"]).expect(0);
    why.says(r#"{"name":"times","volatile":true}"#);
    project.runner(&["why", "t"]).expect(0).says("of-action:");
}

#[test]
fn what_the_description_refuses_is_refused_before_anything_runs() {
    let cases: [(&str, &str, &str); 6] = [
        ("params = { m = 3 }", "7:16: stage `s`: `tool` has no parameter `m`", ""),
        ("params = { n = 0 }", "7:16: stage `s`: parameter `n`: 0 must be at least 1", ""),
        ("params = { n = \"x\" }", "parameter `n`: \"x\" is not of type integer", ""),
        ("params = { mode = \"fst\" }", "\"fst\" is not one of \"fast\", \"slow\"", "did you mean \"fast\"?"),
        ("inputs.more = \"file:data\"", "`tool` takes no input `more`", ""),
        ("matrix = { n = [1, 0] }", "parameter `n`: 0 must be at least 1", ""),
    ];
    for (keys, fault, hint) in cases {
        let keys = if keys.starts_with("inputs.") { "[stage.s.params]" } else { keys };
        let project = project(keys);
        let text = project.read("pipeline.toml");
        if fault.contains("takes no input") {
            std::fs::write(
                project.path("pipeline.toml"),
                text.replace("{ data = \"file:data\" }", "{ data = \"file:data\", more = \"file:data\" }"),
            )
            .unwrap();
        }
        if keys.starts_with("matrix") {
            let text = text.replace("x = \"s.times\"", "x = \"s[*].times\"");
            std::fs::write(project.path("pipeline.toml"), text).unwrap();
        }
        project.runner(&["run"]).expect(2).says(fault).says(hint);
        assert!(!project.path("experiments").exists());
    }
}

#[test]
fn missing_and_unknown_ports_are_named() {
    let missing = project("");
    let text = missing.read("pipeline.toml");
    std::fs::write(missing.path("pipeline.toml"), text.replace("{ data = \"file:data\" }", "{}")).unwrap();
    missing.runner(&["plan"]).expect(2).says("the stage `s` lacks the input `data` of `tool`");
    std::fs::write(missing.path("pipeline.toml"), text.replace("\"times\"]", "\"times\", \"tims\"]"))
        .unwrap();
    missing.runner(&["plan"]).expect(2).says("`tool` writes no output `tims`").says("did you mean `times`?");
}

#[test]
fn values_from_the_command_line_follow_the_schema() {
    let project = project("");
    project.runner(&["run", "--set", "s.name=42", "--set", "s.n=7"]).expect(0);
    let request: Value = serde_json::from_str(&project.newest_text("stages/s/o")).unwrap();
    assert_eq!(request["params"]["name"], "42");
    assert_eq!(request["params"]["n"], 7);
    project
        .runner(&["run", "--set", "s.n=seven"])
        .expect(2)
        .says("parameter `n`: \"seven\" is not of type integer");
}

#[test]
fn the_request_holds_what_the_protocol_promises() {
    let project =
        project("params = { n = 3 }\nresources = { cpus = 2, memory_mb = 100 }\ntimeout = \"1m\"\nseed = 9");
    project.runner(&["run"]).expect(0);
    let request: Value = serde_json::from_str(&project.newest_text("stages/s/o")).unwrap();
    assert_eq!(request["protocol"], 1);
    assert_eq!(request["stage"], "s");
    assert_eq!(request["key"].as_str().unwrap().len(), 64);
    assert_eq!(request["seed"], 9);
    assert_eq!(request["resources"]["cpus"], 2);
    assert!(request["deadline_ms"].as_u64().unwrap() > 1_700_000_000_000);
    for path in ["/inputs/data", "/outputs/o", "/scratch", "/checkpoint_dir", "/live_dir"] {
        assert!(request.pointer(path).unwrap().as_str().unwrap().starts_with('/'), "{path}");
    }
    assert!(!std::path::Path::new(request["scratch"].as_str().unwrap()).exists(), "scratch is deleted");
}

#[test]
fn a_program_that_can_t_describe_itself() {
    let project = Project::new("[stage.s]\nrun = [\"./tool\"]\nprotocol = 2\noutputs = [\"o\"]");
    project.script("tool", "echo nonsense");
    project.runner(&["run"]).expect(2).says("`./tool --describe`: not a description");
    project.script("tool", "echo broken >&2; exit 3");
    project.runner(&["run"]).expect(2).says("--describe`: exit status: 3: broken");
}
