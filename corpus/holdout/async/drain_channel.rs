use tokio::sync::mpsc::Receiver;

/// Receives up to `limit` numbers and sums the even ones; ends early when all senders are gone.
// focal
pub async fn sum_even(receiver: &mut Receiver<i64>, limit: usize) -> (i64, usize) {
    let mut sum = 0;
    let mut received = 0;
    while received < limit {
        let Some(value) = receiver.recv().await else { break };
        received += 1;
        if value % 2 == 0 {
            sum += value;
        }
    }
    (sum, received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    async fn filled(values: &[i64]) -> Receiver<i64> {
        let (sender, receiver) = mpsc::channel(values.len().max(1));
        for value in values {
            sender.send(*value).await.unwrap();
        }
        receiver
    }

    #[tokio::test]
    async fn test_sums_even_values_only() {
        let mut receiver = filled(&[1, 2, 3, 4, -6]).await;
        assert_eq!(sum_even(&mut receiver, 10).await, (0, 5));
        let mut receiver = filled(&[1, 2, 3, 4]).await;
        assert_eq!(sum_even(&mut receiver, 10).await, (6, 4));
    }

    #[tokio::test]
    async fn test_stops_at_the_limit() {
        let mut receiver = filled(&[2, 4, 8]).await;
        assert_eq!(sum_even(&mut receiver, 2).await, (6, 2));
        assert_eq!(receiver.recv().await, Some(8));
    }

    #[tokio::test]
    async fn test_nothing_sent() {
        let mut receiver = filled(&[]).await;
        assert_eq!(sum_even(&mut receiver, 3).await, (0, 0));
    }
}
