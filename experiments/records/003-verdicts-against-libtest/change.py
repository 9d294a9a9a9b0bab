"""Breaks the function of each row where one of these texts occurs; prints the rows that changed."""
import json,sys
for l in open(sys.argv[1]):
    r=json.loads(l); f=r['function_code']
    for a,b in ((' + ',' - '),(' == ',' != '),(' <= ',' < '),('true','false'),(' && ',' || ')):
        if a in f: r['function_code']=f.replace(a,b,1); print(json.dumps(r)); break
