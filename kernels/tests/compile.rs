//! Every kernel compiles for every architecture that is promised. Needs NVRTC, no GPU.

#![cfg(feature = "nvrtc-tests")]

use kernels::cuda::{compile, ops};

#[test]
fn every_kernel_compiles_for_every_architecture() {
    for arch in ["sm_80", "sm_89", "sm_90a"] {
        for source in ops::SOURCES {
            let cubin = compile::cubin(source, arch).unwrap_or_else(|error| panic!("{error}"));
            assert!(cubin.starts_with(b"\x7fELF"), "{} for {arch}", source.name);
        }
    }
}

#[test]
fn every_file_of_kernels_is_listed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".cu"))
        .collect();
    files.sort();
    let mut listed: Vec<&str> = ops::SOURCES.iter().map(|source| source.name).collect();
    listed.sort_unstable();
    assert_eq!(listed, files);
}
