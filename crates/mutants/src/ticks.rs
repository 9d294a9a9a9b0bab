//! Loop fuel for the row's other items: a mutant may hang in a helper that it calls with a wrong argument.

use syn::visit::{self, Visit};
use syn::{Block, Expr, Signature};

use crate::edits::{Dropped, Edit, EditKind, MODULE, render};
use crate::scan::after_brace;

/// The items with a tick at the head of every loop. What does not parse stays as it is.
pub(crate) fn add_ticks(items: &str) -> String {
    let Ok(file) = syn::parse_str::<syn::File>(items) else { return items.to_owned() };
    let mut ticks = Ticks::default();
    ticks.visit_file(&file);
    render(items, &ticks.edits, &Dropped::default()).text
}

#[derive(Debug, Default)]
struct Ticks {
    edits: Vec<Edit>,
}

impl Ticks {
    fn tick(&mut self, block: &Block) {
        let at = after_brace(block);
        let text = format!(" crate::{MODULE}::tick();");
        self.edits.push(Edit::new(at..at, EditKind::Point { text }));
    }
}

fn is_const(sig: &Signature) -> bool {
    sig.constness.is_some()
}

impl<'ast> Visit<'ast> for Ticks {
    fn visit_expr(&mut self, expr: &'ast Expr) {
        match expr {
            Expr::Const(_) | Expr::Repeat(_) => return,
            Expr::While(repeat) => self.tick(&repeat.body),
            Expr::ForLoop(repeat) => self.tick(&repeat.body),
            Expr::Loop(repeat) => self.tick(&repeat.body),
            _ => {}
        }
        visit::visit_expr(self, expr);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_const(&item.sig) {
            self.visit_block(&item.block);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_const(&item.sig) {
            self.visit_block(&item.block);
        }
    }

    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'ast syn::TraitItemConst) {}
    fn visit_item_enum(&mut self, _: &'ast syn::ItemEnum) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
}

#[cfg(test)]
mod test {
    use super::add_ticks;

    #[test]
    fn loops_of_functions_tick_and_constants_do_not() {
        let out = add_ticks(
            "fn f() { while g() { h(); } loop {} }\nconst fn c() { while true {} }\nconst N: u8 = { loop { break 1 } };",
        );
        assert_eq!(out.matches("::tick();").count(), 2);
        assert!(syn::parse_file(&out).is_ok());
        assert_eq!(add_ticks("not rust {"), "not rust {");
    }
}
