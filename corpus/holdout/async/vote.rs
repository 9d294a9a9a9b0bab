use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout_at};

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Carried { against: usize },
    Lost { in_favour: usize },
    Open { votes: usize },
}

/// Counts the votes of `voters` until more than half are for or at least half against; what is open after `patience`, or
/// when nobody can vote any more, stays open. A vote of the same voter counts once.
// focal
pub async fn count_votes(votes: &mut Receiver<(u32, bool)>, voters: usize, patience: Duration) -> Outcome {
    let end = Instant::now() + patience;
    let mut seen: Vec<u32> = Vec::new();
    let (mut yes, mut no) = (0, 0);
    loop {
        if 2 * yes > voters {
            return Outcome::Carried { against: no };
        }
        if voters > 0 && 2 * no >= voters {
            return Outcome::Lost { in_favour: yes };
        }
        let (voter, in_favour) = match timeout_at(end, votes.recv()).await {
            Ok(Some(vote)) => vote,
            Ok(None) | Err(_) => return Outcome::Open { votes: yes + no },
        };
        if seen.contains(&voter) {
            continue;
        }
        seen.push(voter);
        if in_favour {
            yes += 1;
        } else {
            no += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{Sender, channel};

    async fn cast(votes: &[(u32, bool)]) -> (Sender<(u32, bool)>, Receiver<(u32, bool)>) {
        let (sender, receiver) = channel(16);
        for vote in votes {
            sender.send(*vote).await.unwrap();
        }
        (sender, receiver)
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn test_more_than_half_carries() {
        let (_sender, mut votes) = cast(&[(1, true), (2, false), (3, true), (4, true)]).await;
        assert_eq!(count_votes(&mut votes, 5, PATIENCE).await, Outcome::Carried { against: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn test_half_against_is_enough_to_lose() {
        let (_sender, mut votes) = cast(&[(1, true), (2, false), (3, false)]).await;
        assert_eq!(count_votes(&mut votes, 4, PATIENCE).await, Outcome::Lost { in_favour: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn test_a_second_vote_does_not_count() {
        let (sender, mut votes) = cast(&[(1, true), (1, true), (1, false)]).await;
        drop(sender);
        assert_eq!(count_votes(&mut votes, 3, PATIENCE).await, Outcome::Open { votes: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn test_silence_leaves_it_open_after_the_patience() {
        let (_sender, mut votes) = cast(&[(1, true)]).await;
        let begin = Instant::now();
        assert_eq!(count_votes(&mut votes, 3, PATIENCE).await, Outcome::Open { votes: 1 });
        assert_eq!(begin.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn test_nobody_may_vote() {
        let (sender, mut votes) = cast(&[]).await;
        drop(sender);
        assert_eq!(count_votes(&mut votes, 0, PATIENCE).await, Outcome::Open { votes: 0 });
    }
}
