-- End a hold; see `Buckets.settle`. ARGV: hold id, what was used (may be empty), other buckets, what was used of them. Answers 1, or 0 if there is no
-- such hold, because it was settled. It may be another owner's: the worker ends the holds of those that died.

local hold_id, used, others, others_used = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local found = call('MGET', prefix .. 'f:' .. owner, prefix .. 'h:' .. hold_id)
local refusal = fenced(found[1])
if refusal then return refusal end
local hold = found[2]
if not hold then return 0 end

local holder, start = unpack_from('<I2c0', hold)
local buckets, position = read_buckets(hold, start)
if used ~= '' and #used ~= 8 * #buckets then return redis.error_reply('ERR the hold has another number of buckets') end
local holding, also = string.sub(hold, position), {}
if others ~= '' then also = read_buckets(others, 1) end
call('DEL', prefix .. 'h:' .. hold_id)
call('SREM', prefix .. 'o:' .. holder, hold_id)

local keys = {}
for _, bucket in ipairs(buckets) do keys[#keys + 1] = prefix .. 'b:' .. bucket.id end
for _, bucket in ipairs(also) do keys[#keys + 1] = prefix .. 'b:' .. bucket.id end
if #keys == 0 then return 1 end
found = call('MGET', unpack(keys))
-- A bucket may be among both; then there is one state of it.
local states, order = {}, {}
local function state_of(bucket, raw)
  local s = states[bucket.id]
  if s == nil then
    s = read_state(raw)
    if s and s.kind ~= bucket.kind then s = nil end
    states[bucket.id] = s
  end
  return s
end
local function keep(bucket, s)
  states[bucket.id] = s
  if not s.changed then
    s.changed = true
    order[#order + 1] = bucket
  end
end

for i, bucket in ipairs(buckets) do
  local s = state_of(bucket, found[i])
  local units, use_of_it = units_at(holding, i), 0
  if bucket.taken then units = 0 end
  if used ~= '' then use_of_it = units_at(used, i) end
  if bucket.retaken then use_of_it = use_of_it + units end
  if not s and bucket.kind == LEVEL and use_of_it > 0 then s = new_state(bucket, true) end -- it had run empty
  if s and (units ~= 0 or use_of_it ~= 0) then
    s.held = math.max(0, s.held - units)
    if use_of_it ~= 0 then use(s, use_of_it) end
    if units > 0 or use_of_it < 0 then s.back = true end
    keep(bucket, s)
  end
end
for i, bucket in ipairs(also) do
  local s, use_of_it = state_of(bucket, found[#buckets + i]), units_at(others_used, i)
  if (not s or not s.known) and bucket.fresh and bucket.kind ~= GAUGE then
    s = s or new_state(bucket, true)
    s.known = true
  end
  if s and s.known and bucket.kind ~= GAUGE then
    use(s, use_of_it)
    if use_of_it < 0 then s.back = true end
    keep(bucket, s)
  end
end
for _, bucket in ipairs(order) do
  local s = states[bucket.id]
  save(bucket, s)
  if s.back then tell(bucket, s) end
end
return 1
