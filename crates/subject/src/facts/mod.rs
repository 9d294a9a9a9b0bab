//! What can be seen in tests without running them.
