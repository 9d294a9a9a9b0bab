#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    Frozen,
    Amount,
    Funds { missing: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub balance: u64,
    pub overdraft: u64,
    pub frozen: bool,
}

impl Account {
    /// Takes `amount` out, down to the overdraft; the balance is then what is left above it.
    // focal
    pub fn withdraw(&mut self, amount: u64) -> Result<u64, Refusal> {
        if self.frozen {
            return Err(Refusal::Frozen);
        }
        if amount == 0 {
            return Err(Refusal::Amount);
        }
        let available = self.balance + self.overdraft;
        if amount > available {
            return Err(Refusal::Funds { missing: amount - available });
        }
        let from_balance = amount.min(self.balance);
        self.balance -= from_balance;
        self.overdraft -= amount - from_balance;
        Ok(self.balance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account { balance: 100, overdraft: 50, frozen: false }
    }

    #[test]
    fn test_takes_from_the_balance_first() {
        let mut account = account();
        assert_eq!(account.withdraw(30), Ok(70));
        assert_eq!((account.balance, account.overdraft), (70, 50));
    }

    #[test]
    fn test_takes_the_rest_from_the_overdraft() {
        let mut account = account();
        assert_eq!(account.withdraw(120), Ok(0));
        assert_eq!((account.balance, account.overdraft), (0, 30));
        assert_eq!(account.withdraw(30), Ok(0));
        assert_eq!(account.overdraft, 0);
    }

    #[test]
    fn test_says_how_much_is_missing() {
        let mut account = account();
        assert_eq!(account.withdraw(151), Err(Refusal::Funds { missing: 1 }));
        assert_eq!(account, self::account());
        assert_eq!(account.withdraw(150), Ok(0));
    }

    #[test]
    fn test_refuses_nothing_and_frozen_accounts() {
        let mut account = account();
        assert_eq!(account.withdraw(0), Err(Refusal::Amount));
        account.frozen = true;
        assert_eq!(account.withdraw(0), Err(Refusal::Frozen));
        assert_eq!(account.withdraw(10), Err(Refusal::Frozen));
    }
}
