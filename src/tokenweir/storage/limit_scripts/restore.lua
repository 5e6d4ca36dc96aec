-- The server forgot everything, and an owner tells it again what it holds. ARGV: hold id, units held, buckets. What was used is for the ledger to say.
-- What was taken at once is held from now on: the ledger will know of it only when its request ends, and until then nobody else may have it.

local hold_id, units, packed = ARGV[4], ARGV[5], ARGV[6]
local found = call('MGET', prefix .. 'f:' .. owner, prefix .. 'h:' .. hold_id)
local refusal = fenced(found[1])
if refusal then return refusal end
if found[2] then return 0 end
local buckets = read_buckets(packed, 1)
local again = { struct.pack('<I2', #buckets) }
for i, bucket in ipairs(buckets) do
  local held = units_at(units, i)
  again[i + 1] = pack_bucket(bucket, (bucket.taken or bucket.retaken) and 2 or 0)
  if held > 0 then
    local s = read_state(call('GET', prefix .. 'b:' .. bucket.id))
    if not s or s.kind ~= bucket.kind then s = new_state(bucket, bucket.kind == GAUGE) end
    s.held = add(s.held, held)
    save(bucket, s)
  end
end
call('SET', prefix .. 'h:' .. hold_id, struct.pack('<I2c0', #owner, owner) .. table.concat(again) .. units)
call('SADD', prefix .. 'o:' .. owner, hold_id)
return 1
