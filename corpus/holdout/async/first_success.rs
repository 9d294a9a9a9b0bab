use std::future::Future;

/// Calls `attempt` with 1, 2, ... until it succeeds, at most `tries` times; the last error otherwise, `None` for no tries.
// focal
pub async fn first_success<T, E, F, Fut>(tries: u32, mut attempt: F) -> Option<Result<T, E>>
where
    F: FnMut(u32) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut last = None;
    for number in 1..=tries {
        match attempt(number).await {
            Ok(value) => return Some(Ok(value)),
            Err(error) => last = Some(Err(error)),
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn test_stops_at_the_first_success() {
        let mut calls = 0;
        let result = first_success(5, |n| {
            calls += 1;
            async move { if n >= 3 { Ok::<u32, String>(n * 10) } else { Err(format!("try {n}")) } }
        })
        .await;
        assert_eq!(result, Some(Ok(30)));
        assert_eq!(calls, 3);
    }

    #[tokio::test]
    async fn test_gives_the_last_error() {
        let result = first_success(2, |n| async move { Err::<(), String>(format!("try {n}")) }).await;
        assert_eq!(result, Some(Err("try 2".to_string())));
    }

    #[tokio::test]
    async fn test_no_tries_give_nothing() {
        let result = first_success(0, |_| async { Ok::<(), ()>(()) }).await;
        assert_eq!(result, None);
    }
}
