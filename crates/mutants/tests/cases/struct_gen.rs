// items
#[derive(Debug, Default, Clone, PartialEq)] pub struct Cfg { a: u8, b: Option<String>, c: bool }
// function
impl Cfg {
    pub fn merge(self, other: Cfg) -> Cfg {
        Cfg { b: other.b.or(self.b.clone()), c: self.c || other.c, ..self }
    }
}
// tests
#[test] fn t() { let x = Cfg { a: 1, b: None, c: false }.merge(Cfg { a: 2, b: Some("z".into()), c: true }); assert_eq!(x, Cfg { a: 1, b: Some("z".into()), c: true }); }
