//! Empty: this package only names its dependencies.
