#[allow(dead_code, unused, clippy::all)]
pub mod __testforge_tokio {
    pub fn current_thread<F: ::std::future::Future>(start_paused: bool, future: F) -> F::Output {
        let runtime = ::tokio::runtime::Builder::new_current_thread().enable_all().start_paused(start_paused).build();
        runtime.expect("a runtime").block_on(future)
    }

    pub fn multi_thread<F: ::std::future::Future>(workers: usize, future: F) -> F::Output {
        let runtime = ::tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
        runtime.expect("a runtime").block_on(future)
    }
}
