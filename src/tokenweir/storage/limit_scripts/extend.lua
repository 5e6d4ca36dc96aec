-- Hold more of a hold's buckets; see `Buckets.extend`. ARGV: hold id, units. Answers as reserve.lua does, or {3} for an unknown hold.

local hold_id, units = ARGV[4], ARGV[5]
local found = call('MGET', prefix .. 'f:' .. owner, prefix .. 'h:' .. hold_id)
local refusal = fenced(found[1])
if refusal then return refusal end
local hold = found[2]
if not hold then return { 3 } end

local _, start = unpack_from('<I2c0', hold)
local buckets, position = read_buckets(hold, start)
if #units ~= 8 * #buckets then return redis.error_reply('ERR the hold has another number of buckets') end
if #buckets == 0 then return { 0 } end
local keys = {}
for i, bucket in ipairs(buckets) do keys[i] = prefix .. 'b:' .. bucket.id end
found = call('MGET', unpack(keys))

local states, short, over = {}, { 1 }, {}
for i, bucket in ipairs(buckets) do
  local s, asked = read_state(found[i]), units_at(units, i)
  -- A level that is not there any more has run empty; a counter that is not there any more is over.
  if not s or s.kind ~= bucket.kind then s = new_state(bucket, true) end
  if s.kind == LEVEL then leak(s) end
  if asked > 0 and not fits(bucket, s, asked) then
    if bucket.ends_streams and bucket.enforced then add_shortage(short, i, bucket, s) else over[#over + 1] = i - 1 end
  end
  states[i] = s
end
if #short > 1 then return short end

local reply, holding, extended = { 0 }, string.sub(hold, position), {}
for i, bucket in ipairs(buckets) do
  local s, asked = states[i], units_at(units, i)
  local held = units_at(holding, i)
  if bucket.taken then
    use(s, asked)
  else
    s.held = add(s.held, asked)
    held = add(held, asked)
  end
  extended[i] = struct.pack('<i8', held)
  if asked ~= 0 and (found[i] or s.kind ~= COUNTER) then save(bucket, s) end
  reply[2 * i], reply[2 * i + 1] = whole(s), s.held
end
for _, index in ipairs(over) do reply[#reply + 1] = index end
call('SET', prefix .. 'h:' .. hold_id, string.sub(hold, 1, position - 1) .. table.concat(extended))
return reply
