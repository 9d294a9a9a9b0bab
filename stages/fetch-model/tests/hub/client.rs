//! A small model in the layout of a hub, and a client with a cache of its own.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use fetch_model::hub::{Fetched, Hub, Settings};
use fetch_model::{FetchModel, Params};
use model::config::Config;
use model::init;
use stage_kit::{Context, ContextBuilder, Outcome, StageError};
use tempfile::TempDir;

use crate::server::{Files, Server};

pub(crate) const ID: &str = "owner/tiny";

/// A model of 3072 ids and little else, in the layout of a hub.
pub(crate) fn files(shards: bool) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let params = Params { source: "embedded:tiny".to_owned(), ..Params::default() };
    let outcome =
        ContextBuilder::new("fetch-model", dir.path()).output("model", &out).run::<FetchModel>(params);
    assert_eq!(outcome.unwrap(), Outcome::Done);
    fs::remove_file(out.join("manifest.json")).unwrap();
    let config = Config {
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        ..init::architecture("tiny").unwrap()
    };
    fs::write(out.join("config.json"), config.to_json(model::Dtype::F32)).unwrap();
    let weights = init::random_weights(&config, 1);
    weights.save(&out, None).unwrap();
    fs::write(out.join("README.md"), "---\nlicense: apache-2.0\n---\n# Tiny\n").unwrap();
    if shards {
        fs::remove_file(out.join("model.safetensors")).unwrap();
        let mut map = std::collections::BTreeMap::new();
        let mut parts = [std::collections::BTreeMap::new(), std::collections::BTreeMap::new()];
        for (i, (name, tensor)) in weights.iter().enumerate() {
            map.insert(name.to_owned(), format!("part-{}.safetensors", i % 2));
            parts[i % 2].insert(name.to_owned(), tensor.clone());
        }
        for (i, part) in parts.iter().enumerate() {
            model::weights::write_file(&out.join(format!("part-{i}.safetensors")), part).unwrap();
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
        fs::write(out.join("model.safetensors.index.json"), index).unwrap();
    }
    let entries = fs::read_dir(&out).unwrap().map(|e| e.unwrap().path());
    entries.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&p).unwrap())).collect()
}

/// A client with its own cache, and the context of a stage.
pub(crate) struct Client {
    pub(crate) root: TempDir,
    pub(crate) settings: Settings,
    pub(crate) context: Context,
}

impl Client {
    pub(crate) fn new(server: &Server) -> Self {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings {
            endpoint: server.address(),
            cache: root.path().join("cache"),
            token: None,
            offline: false,
            attempts: 4,
            wait: Duration::from_millis(1),
            pause_max: Duration::from_millis(300),
            silence: Duration::from_secs(20),
        };
        let context = ContextBuilder::new("fetch-model", root.path()).build().unwrap();
        Self { root, settings, context }
    }

    pub(crate) fn fetch(&self) -> Result<Fetched, StageError> {
        self.fetch_revision("main")
    }

    pub(crate) fn fetch_revision(&self, revision: &str) -> Result<Fetched, StageError> {
        Hub::new(self.settings.clone()).unwrap().fetch(ID, revision, &self.context)
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.path().join("cache/models--owner--tiny/blobs")
    }
}
