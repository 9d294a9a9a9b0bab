use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

/// Collects bursts: values that follow each other within `quiet` form one burst, of which the last value is kept.
// focal
pub async fn debounce(mut events: UnboundedReceiver<u32>, quiet: Duration) -> Vec<u32> {
    let mut kept = Vec::new();
    while let Some(mut latest) = events.recv().await {
        loop {
            match timeout(quiet, events.recv()).await {
                Ok(Some(next)) => latest = next,
                Ok(None) | Err(_) => break,
            }
        }
        kept.push(latest);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn test_keeps_the_last_of_each_burst() {
        let (sender, receiver) = unbounded_channel();
        let source = async move {
            for value in [1, 2, 3] {
                sender.send(value).unwrap();
                sleep(Duration::from_millis(5)).await;
            }
            sleep(Duration::from_millis(100)).await;
            sender.send(9).unwrap();
        };
        let (kept, ()) = tokio::join!(debounce(receiver, Duration::from_millis(20)), source);
        assert_eq!(kept, vec![3, 9]);
    }

    #[tokio::test(start_paused = true)]
    async fn test_slow_values_are_all_kept() {
        let (sender, receiver) = unbounded_channel();
        let source = async move {
            for value in [4, 5] {
                sender.send(value).unwrap();
                sleep(Duration::from_millis(50)).await;
            }
        };
        let (kept, ()) = tokio::join!(debounce(receiver, Duration::from_millis(20)), source);
        assert_eq!(kept, vec![4, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn test_no_events_no_values() {
        let (sender, receiver) = unbounded_channel::<u32>();
        drop(sender);
        assert!(debounce(receiver, Duration::from_millis(20)).await.is_empty());
    }
}
