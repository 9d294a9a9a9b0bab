//! Names of property-test variables.

use syn::visit::{self, Visit};
use syn::{Item, Macro, Pat};

use crate::proptest_block::{PropertyParam, ProptestBlock, ProptestClosure};
use crate::tests::is_proptest;
use crate::{TestModule, TestSuite};

pub(super) fn names(suite: &TestSuite) -> Vec<String> {
    let mut search = Names::default();
    for TestModule { items, .. } in &suite.modules {
        for item in items {
            search.visit_item(item);
        }
    }
    search.0
}

#[derive(Debug, Default)]
struct Names(Vec<String>);

impl Names {
    fn add(&mut self, params: &[PropertyParam]) {
        for param in params {
            let mut idents = Idents(&mut self.0);
            idents.visit_pat(param.pat());
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_macro(&mut self, mac: &'ast Macro) {
        if !is_proptest(mac) {
            return;
        }
        if let Ok(block) = ProptestBlock::parse(mac.tokens.clone()) {
            for test in &block.tests {
                self.add(&test.params);
                // Macros inside the body may hold the closure form.
                let body = test.body.clone();
                let mut inner = Names::default();
                inner.visit_block(&body);
                self.0.append(&mut inner.0);
            }
        } else if let Ok(closure) = syn::parse2::<ProptestClosure>(mac.tokens.clone()) {
            self.add(&closure.params);
        }
    }

    fn visit_item(&mut self, item: &'ast Item) {
        visit::visit_item(self, item);
    }
}

struct Idents<'n>(&'n mut Vec<String>);

impl<'ast> Visit<'ast> for Idents<'_> {
    fn visit_pat(&mut self, pat: &'ast Pat) {
        if let Pat::Ident(ident) = pat {
            self.0.push(ident.ident.to_string());
        }
        visit::visit_pat(self, pat);
    }
}
